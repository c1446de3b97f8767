"""The file that the WebUI loads as a script. It registers callbacks, and begins to fetch code."""

from importlib.util import find_spec

from modules import script_callbacks


def _why_not() -> str | None:
    """Return why nothing is accelerated in this WebUI, or None."""
    if not find_spec("modules.options"):  # from WebUI 1.6.0 on
        return "this WebUI is older than 1.6.0, and nothing is accelerated. Update it."
    from lib_accel.host import unknown_host

    return unknown_host()


if reason := _why_not():
    print(f"Acceleration: {reason}")
else:
    from lib_accel.host import webui
    from lib_accel.host.pages import api, settings, tab, xyz
    from lib_accel.host.pages.script import AccelScript as Script  # noqa: F401  found by its class
    from lib_accel.host.service import service
    from lib_accel.host.taiyi.hooks import taiyi

    if webui.flag("accel_log_json"):
        webui.events.begin()
        script_callbacks.on_script_unloaded(webui.events.end)
    settings.register(service.options_changed)
    service.fetch_ahead()
    if webui.host.taiyi:
        taiyi.register()
    script_callbacks.on_model_loaded(service.model_loaded)
    script_callbacks.on_before_ui(xyz.add_axis)
    script_callbacks.on_ui_tabs(tab.tab)
    script_callbacks.on_app_started(lambda _, app: api.add_routes(app))
    # "Reload UI" unloads scripts, which undoes acceleration, and keeps the models
    script_callbacks.on_app_started(lambda *_: service.options_changed())
    script_callbacks.on_cfg_denoiser(service.clock.start)
    script_callbacks.on_cfg_denoised(service.clock.stop)
    script_callbacks.on_cfg_after_cfg(service.clock.stop)
    script_callbacks.on_script_unloaded(service.shutdown)
    script_callbacks.on_script_unloaded(xyz.remove_axis)
    script_callbacks.on_script_unloaded(taiyi.remove)
