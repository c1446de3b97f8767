"""An extension for tests: what the loaded text encoder makes of a prompt, and what is replaced."""

import torch
from modules import devices, script_callbacks, sd_hijack, sd_models, sd_models_config, shared, ui


def encoded(text: str):
    """Return the token ids of each chunk, and the hidden states: [77 * chunks][768]."""
    model = shared.sd_model
    chunks, _ = model.cond_stage_model.process_texts([text])
    with torch.no_grad(), devices.autocast():
        states = model.get_learned_conditioning([text])
    return {"tokens": [c.tokens for c in chunks[0]], "states": states[0].float().tolist()}


def counted(text: str):
    """Return what the token counter beside a prompt shows."""
    return ui.update_token_counter(text, 20, [])


def embeddings():
    """Return the names of the embeddings, and the token ids by which each is found."""
    table = sd_hijack.model_hijack.embedding_db.ids_lookup
    return {embedding.name: ids for found in table.values() for ids, embedding in found}


def replaced():
    """Return the modules of the functions that load a model."""
    data = sd_models.model_data
    return [f.__module__ for f in (sd_models_config.find_checkpoint_config, data.set_sd_model)]


def encoder():
    """Return the class of the loaded text encoder."""
    return type(shared.sd_model.cond_stage_model).__name__


def memory():
    """Return the names of the models in memory, the current one first."""
    return [m.sd_checkpoint_info.name_for_extra for m in sd_models.model_data.loaded_sd_models]


def _add_routes(_, app):
    for function in (encoded, counted, embeddings, replaced, encoder, memory):
        app.add_api_route(f"/taiyi-probe/{function.__name__}", function, methods=["GET"])


script_callbacks.on_app_started(_add_routes)
