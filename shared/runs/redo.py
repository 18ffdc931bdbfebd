"""What a change of settings makes out of date: all of it in one line, before anything trains."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from shared.config.command_line import KEPT, run_name
from shared.config.imported import pretraining_is_imported
from shared.config.methods import METHODS
from shared.config.schema import Config, defaults, hashed_settings
from shared.data.images import ImageSet
from shared.data.labels import read_names
from shared.runtime.errors import UserError
from shared.runtime.progress import counted
from shared.runtime.stage_folder import HASHES, OtherSettingsError, differences, made_with
from shared.training.stage import images_then, options_of, renamed_of


def same_run(config: Config) -> str:
    """The command that goes on with a run, with the settings that were kept or all of them."""
    folder = config.folder
    if not (folder / KEPT).is_file():
        return f"python pipeline.py --config {shlex.quote(str(folder / 'config.yaml'))}"
    command = f"python pipeline.py --data.train {shlex.quote(config.data.train)}"
    if config.run != run_name(config.data.train):
        command += f" --run {config.run}"
    if config.output != Config.output:
        command += f" --output {shlex.quote(config.output)}"
    return command


Changes = Mapping[str, tuple[Any, Any]]  # setting -> before, now


def require_no_artifacts(config: Config) -> None:
    """Refuse to choose settings for a run whose stages were made with others, now unknown.

    Its ``recipe.yaml`` was lost, or it had another recipe. A new choice would only be refused.

    Raises:
        UserError: naming the stages, and the command that goes on with their settings.
    """
    made = [
        name
        for name in METHODS
        if made_with(config.folder_of(name)) is not None and not config.forces(name)
    ]
    if "pretrain" in made and pretraining_is_imported(config):
        made.remove("pretrain")
    if made and not config.plan:
        kept = config.folder / KEPT
        raise UserError(
            f"{kept} is missing, which says the settings that {', '.join(made)} were made with; put"
            f" it back, or go on with {same_run(config)}, or choose another --run"
        )


def require_same_options(config: Config) -> None:
    """Refuse a run whose artifacts were made with other options, before any stage begins.

    Raises:
        UserError: naming the options, all stages that are concerned, and the one ``--force``.
    """
    if refusal := refusal_of(config):
        raise UserError(refusal)


def refusal_of(config: Config) -> str:
    """What a run is refused for whose artifacts were made with other options; empty if none was."""
    changed = {name: changed_options(config, name) for name in METHODS}
    changed = {name: changes for name, changes in changed.items() if changes}
    return _text(config, changed) if changed else ""


def pretraining_is_kept(config: Config, images: ImageSet) -> bool:
    """Whether a pretraining is there and stays, although the run's images may be others now."""
    stored = made_with(config.folder_of("pretrain"))
    if stored is None or config.forces("pretrain"):
        return False
    if pretraining_is_imported(config) or stored.get("images") == images.fingerprint:
        return True
    return images_then(config.folder_of("pretrain"), images, config.data) is not images


def all_to_redo(config: Config, error: OtherSettingsError, images: ImageSet) -> UserError:
    """The refusal of one stage, with all others that the same change concerns.

    A hash, as of the labeled images, is known to the stage alone. Stages that were made with the
    same old value are concerned too, but for a pretraining that is kept without new images.

    Args:
        config: the run's.
        error: what the stage says.
        images: for training.
    """
    outdated: dict[str, Changes] = {}
    kept = images_then(config.folder_of("pretrain"), images, config.data) is not images
    for name in METHODS:
        stored = made_with(config.folder_of(name)) or {}
        changes = {
            key: (before, now)
            for key, (before, now) in error.changed.items()
            if before is not None and stored.get(key) == before
        }
        if changes and not config.forces(name) and not (kept and name == "pretrain"):
            outdated[name] = changes
    if not outdated:
        return error
    return UserError(_text(config, outdated, _other_images(config, error, images)))


def _other_images(config: Config, error: OtherSettingsError, images: ImageSet) -> str:
    """How many images are new or gone; empty where they are the same."""
    folder = config.folder_of("pretrain")
    if "images" not in error.changed or not (folder / "images.csv").exists():
        return ""
    then, now = set(read_names(folder / "images.csv")), set(images.names)
    gone = f", {len(then - now):,} of the earlier ones are gone or for testing" * bool(then - now)
    return f"{len(now - then):,} of {counted(len(now), 'training image')} are new{gone}"


def changed_options(config: Config, method: str) -> dict[str, tuple[Any, Any]]:
    """The options of a method's artifact that are others now; none where there is no artifact."""
    stored = made_with(config.folder_of(method))
    if stored is None or config.forces(method):
        return {}
    noted = {key.partition(".")[0] for key in stored}  # the sections that it depends on
    options = options_of(config, method)
    if "model" in noted:
        model = replace(config.model, encoder=config.encoder_of(method))
        options |= hashed_settings(model, "model")
    options = {key: value for key, value in options.items() if key.partition(".")[0] in noted}
    return differences(stored, options, defaults(), renamed_of(method))


def _text(config: Config, outdated: Mapping[str, Changes], new_images: str = "") -> str:
    """What changed, what it concerns and what to do.

    ``new_images``: how many are new, where the images changed and that is known.
    """
    changed: dict[str, tuple[Any, Any]] = {}
    for changes in outdated.values():
        changed |= changes
    first, *others = sorted(
        changed, key=lambda key: (key not in HASHES, key)
    )  # other data, above all
    before, now = changed[first]
    also = f" (also changed: {', '.join(others[:5])})" if others else ""
    forced = [name for name in outdated if not set(config.ancestors_of(name)) & outdated.keys()]
    made = [name for name in METHODS if made_with(config.folder_of(name)) is not None]
    concerned = [
        name
        for name in made
        if name in outdated or set(config.ancestors_of(name)) & outdated.keys()
    ]
    what = f"was made with {first}={before}, now it is {now}{also};{HASHES.get(first, '')}"
    other = "choose another --run"
    if new_images:
        what = f"was made with other images: {new_images};"
        other = f"give --run NEW --pretrain.init {config.folder_of('pretrain')} to go on from it"
    return (
        f"{config.folder} {what} this concerns {', '.join(concerned)}: redo all with --force"
        f" {','.join(forced)} or {other}"
    )
