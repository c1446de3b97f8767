"""The file that the WebUI loads as a script. It registers callbacks, and begins to fetch code."""

from importlib.util import find_spec

from modules import script_callbacks

if find_spec("modules.options"):  # from WebUI 1.6.0 on
    from lib_accel.host.pages import api, settings, tab, xyz
    from lib_accel.host.pages.script import AccelScript as Script  # noqa: F401  found by its class
    from lib_accel.host.service import service
    from lib_accel.host.taiyi.hooks import taiyi

    settings.register(service.options_changed)
    service.fetch_ahead()
    taiyi.register()
    script_callbacks.on_model_loaded(service.model_loaded)
    script_callbacks.on_before_ui(xyz.add_axis)
    script_callbacks.on_ui_tabs(tab.tab)
    script_callbacks.on_app_started(lambda _, app: api.add_routes(app))
    # "Reload UI" unloads scripts, which undoes acceleration, and keeps the models
    script_callbacks.on_app_started(lambda *_: service.options_changed())
    script_callbacks.on_cfg_denoiser(service.clock.start)
    script_callbacks.on_cfg_denoised(service.clock.stop)
    script_callbacks.on_script_unloaded(service.shutdown)
    script_callbacks.on_script_unloaded(xyz.remove_axis)
    script_callbacks.on_script_unloaded(taiyi.remove)
else:
    print("Acceleration: this WebUI is older than 1.6.0, and nothing is accelerated. Update it.")
