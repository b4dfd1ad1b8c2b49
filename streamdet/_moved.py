"""Where modules went, for programs that import them from where they were; goes with the next version."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_PACKAGE = "streamdet."
MOVED = {
    "allowed_clients": "security.curve",
    "asking": "client.recovery",
    "batch_queue": "inference.batch_queue",
    "changes": "service.live_config",
    "client_sockets": "client.subscription",
    "commands": "service.control.operations",
    "config.loadable": "config.checks",
    "config.tables.stream": "config.stream",
    "control.client": "service.control.client",
    "control.listen": "service.control.unix_socket",
    "control.place": "service.control.paths",
    "control.protocol": "service.control.api",
    "control.server": "service.control.api",
    "credentials": "security.files",
    "daemon": "service.daemon",
    "delivery_metrics": "monitoring.metrics",
    "demo": "cli.demo",
    "descriptors": "delivery.connections",
    "detector.box_head": "detector.engines.pytorch",
    "detector.classify": "detector.stages.classify",
    "detector.cuda.choose": "detector.graph.choose",
    "detector.cuda.graph": "detector.graph.capture",
    "detector.cuda.kernels": "detector.graph.kernels",
    "detector.cuda.runner": "detector.graph.cuda_runner",
    "detector.cuda.slots": "detector.graph.cuda_runner",
    "detector.dense": "detector.engines",
    "detector.epilogue": "detector.engines.packing",
    "detector.features": "detector.stages.features",
    "detector.fixed.align": "detector.graph.align",
    "detector.fixed.boxes": "detector.graph.boxes",
    "detector.fixed.canvas": "detector.graph.canvas",
    "detector.fixed.detector": "detector.graph.detector",
    "detector.fixed.finish": "detector.graph.finish",
    "detector.fixed.model": "detector.graph.model",
    "detector.fixed.pixels": "detector.graph.pixels",
    "detector.fixed.propose": "detector.graph.propose",
    "detector.fixed.runner": "detector.graph.runner",
    "detector.fixed.step": "detector.graph.step",
    "detector.fixed.suppress": "detector.graph.suppress",
    "detector.folding": "detector.engines.packing",
    "detector.input": "detector.stages.input",
    "detector.models": "detector.weights.architectures",
    "detector.openvino_convert": "detector.engines.openvino",
    "detector.openvino_dense": "detector.engines.openvino",
    "detector.openvino_file": "detector.engines.openvino",
    "detector.openvino_runtime": "detector.engines.openvino",
    "detector.packing": "detector.engines.packing",
    "detector.postprocess": "detector.stages.postprocess",
    "detector.preprocess": "detector.stages.preprocess",
    "detector.proposals": "detector.stages.proposals",
    "detector.published": "detector.weights.torchvision",
    "detector.quantise": "detector.engines.quantise",
    "detector.resize": "detector.stages.preprocess",
    "detector.roi_pool": "detector.stages.roi_pool",
    "detector.several": "detector.pool",
    "detector.square_pixels": "detector.stages.square_pixels",
    "detector.state_dict": "detector.weights.state_dict",
    "detector.thresholds": "detector.weights.thresholds",
    "detector.torch_dense": "detector.engines.pytorch",
    "detector_failures": "detector.failures",
    "endpoint": "security.endpoints",
    "failure_log": "monitoring.log",
    "gaps": "client.gaps",
    "gate": "delivery.connections",
    "heal": "client.recovery",
    "health": "service.pages",
    "install.environment": "service.install.environment",
    "install.service": "service.install.service",
    "install.steps": "service.install.steps",
    "keys": "security.curve",
    "ledger": "monitoring.ledger",
    "log": "monitoring.log",
    "log_writer": "monitoring.log",
    "metrics": "monitoring.metrics",
    "metrics_reference": "monitoring.reference",
    "outgoing": "delivery.events",
    "page_login": "http.access",
    "password": "security.passwords",
    "plain_text": "security.plain_text",
    "preview": "delivery.preview",
    "publisher": "delivery.publisher",
    "pulse": "service.housekeeping",
    "rate_limit": "security.limits",
    "rates": "monitoring.rates",
    "redact": "security.redact",
    "reload": "service.live_config",
    "replay": "delivery.replay",
    "restart_delay": "service.restart_delay",
    "scene": "analytics.stream_analytics",
    "shape_metrics": "monitoring.metrics",
    "sockets": "delivery.sockets",
    "sources.aes": "capture.sources.hls.decrypt",
    "sources.av": "capture.sources.av",
    "sources.camera_clock": "capture.sources.clocks",
    "sources.connection": "capture.sources.diagnosis",
    "sources.failure": "capture.sources.diagnosis",
    "sources.fifo": "capture.sources.fifo",
    "sources.formats": "capture.sources.ffmpeg",
    "sources.frame_rate": "capture.sources.clocks",
    "sources.h264": "capture.sources.h264",
    "sources.hls": "capture.sources.hls.files",
    "sources.hls_position": "capture.sources.hls.playlist",
    "sources.http_client": "capture.sources.http_client",
    "sources.http_stream": "capture.sources.http_stream",
    "sources.hwaccel": "capture.sources.ffmpeg",
    "sources.interrupt": "capture.sources.interrupt",
    "sources.load_limit": "capture.load_limit",
    "sources.login": "capture.sources.login",
    "sources.losses": "capture.sources.soundness",
    "sources.memory": "capture.sources.ffmpeg",
    "sources.mjpeg": "capture.sources.mjpeg",
    "sources.opencv": "capture.sources.opencv",
    "sources.options": "capture.sources.ffmpeg",
    "sources.pacing": "capture.sources.clocks",
    "sources.patience": "capture.sources.connections",
    "sources.picture": "capture.sources.picture",
    "sources.pixel_formats": "capture.sources.picture",
    "sources.playlist": "capture.sources.hls.playlist",
    "sources.probe": "capture.probe",
    "sources.resolve": "capture.sources.dns",
    "sources.rtsp": "capture.sources.rtsp",
    "sources.soundness": "capture.sources.soundness",
    "spare_cores": "service.housekeeping",
    "spool": "delivery.spool",
    "stall_watch": "capture.watchdog",
    "standard_streams": "cli.standard_streams",
    "status_log": "service.statuses",
    "stream_series": "monitoring.metrics",
    "streams": "service.streams",
    "subscriptions": "delivery.sockets",
    "systemd": "monitoring.systemd",
    "tracing": "monitoring.opentelemetry",
    "tracker": "analytics.tracker",
    "training.augment": "training.pictures",
    "training.parallel": "training.processes",
    "training.run_folder": "training.run",
    "tries": "security.limits",
    "trusted_clock": "delivery.trusted_clock",
    "turns": "inference.sequence",
    "unexpected": "monitoring.unexpected",
    "web.child": "cli.demo",
    "web.pages": "web.html",
    "web.stages": "web.daemon_metrics",
    "zap": "delivery.connections",
    "zones": "analytics.zones",
}
"""The old name of a module without the package's, and the new one."""


class MovedModules:
    """Imports a module by its old name, with a DeprecationWarning that says the new one; for `sys.meta_path`."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the library's own signature
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """What loads the module, for an old name alone."""
        old = fullname.removeprefix(_PACKAGE)
        is_package = any(name.startswith(f"{old}.") for name in MOVED)
        if not fullname.startswith(_PACKAGE) or (old not in MOVED and not is_package):
            return None
        from importlib.machinery import ModuleSpec  # noqa: PLC0415 - `import streamdet` waits for nothing

        loader: Any = self
        return ModuleSpec(fullname, loader, is_package=is_package)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """None: an empty module will do."""

    def exec_module(self, module: ModuleType) -> None:
        """Fills the module with what the new one holds."""
        import importlib  # noqa: PLC0415 - as above
        import warnings  # noqa: PLC0415

        old = module.__name__.removeprefix(_PACKAGE)
        if old not in MOVED:
            return
        new = _PACKAGE + MOVED[old]
        warnings.warn(f"{module.__name__} is {new} now; the old name goes", DeprecationWarning, stacklevel=2)
        found = vars(importlib.import_module(new))
        vars(module).update({name: value for name, value in found.items() if not name.startswith("__")})
