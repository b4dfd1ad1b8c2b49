#!/bin/sh
# Makes the secrets of container/compose.yml that are missing, in container/secrets or the folder that is given. Needs
# openssl and docker or podman (ENGINE); IMAGE names the image of streamdet. Run it as root where the engine does.
set -eu
umask 077
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
cd "$folder"
engine=${ENGINE:-$(command -v docker || command -v podman)}
image=${IMAGE:-localhost/streamdet:latest}

# What is written is whole, or missing: an empty file would count as a secret at the next call.
keep() { cat >"$1.part" && [ -s "$1.part" ] && mv "$1.part" "$1" || { rm -f "$1.part"; echo "$1 was not made" >&2; exit 1; }; }
random() { openssl rand -hex 16; }
# A hash is computed in the image, so that nothing has to be installed here.
stored() { "$engine" run --rm -i --network none --entrypoint sh "$image" -c "$1"; }

[ -e CAMERA_LOGIN ] || {
  printf 'user and password of the cameras, as user:password: '
  # What is typed is not shown.
  [ ! -t 0 ] || { trap 'stty echo' EXIT; stty -echo; }
  head -n 1 | keep CAMERA_LOGIN
  [ ! -t 0 ] || { stty echo; trap - EXIT; echo; }
}
[ -e MQTT_PASSWORD ] || random | keep MQTT_PASSWORD
# As mosquitto_passwd writes it: PBKDF2 with SHA-512.
# shellcheck disable=SC2016 # the container's shell and Python expand it
[ -e mosquitto.passwords ] || stored 'python3 -c "
import base64, hashlib, os, sys
salt, n = os.urandom(12), 20000
digest = hashlib.pbkdf2_hmac(\"sha512\", sys.stdin.readline().rstrip(\"\n\").encode(), salt, n)
print(\"streamdet:\$7\$%d\$%s\$%s\" % (n, base64.b64encode(salt).decode(), base64.b64encode(digest).decode()))
"' <MQTT_PASSWORD | keep mosquitto.passwords
[ -e grafana.password ] || random | keep grafana.password
[ -e page.password ] || {
  password=$(random)
  echo "$password" | stored 'streamdet web --set-password /tmp/p >/dev/null && cat /tmp/p' | keep page.password
  echo "the password of the page is $password"
}
[ -e page.key ] || openssl ecparam -genkey -noout -name prime256v1 -out page.key
[ -e page.pem ] || openssl req -x509 -key page.key -days 825 -subj /CN=streamdet \
  -addext "subjectAltName=DNS:localhost,DNS:$(hostname)" -out page.pem

# Each belongs to the user of the container that reads it.
if [ "$(id -u)" = 0 ]; then
  chown 10001:10001 CAMERA_LOGIN MQTT_PASSWORD page.*
  chown 1883:1883 mosquitto.passwords
  chown 472:0 grafana.password
fi
echo "the secrets are in $PWD"
