"""Bridges carry events elsewhere: subscribers in processes of their own, built on `client` alone.

`process.py` is what every bridge needs: `Forwarder`, a thread that hands on events and keeps how far it has come, and
the life of the process. `webhook.py` posts events over HTTP, `mqtt/` publishes them to a broker, `files/` records them
as Parquet and JSONL files.
"""
