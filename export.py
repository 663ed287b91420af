"""Export: a run -> a folder (or a hub repository) that stock `transformers` loads.

python export.py runs/mine --to exported
python export.py runs/mine --push me/my-encoder --private
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Literal

from triptych.evaluation.card import card
from triptych.training import own
from triptych.training.command_line import with_values
from triptych.training.errors import UserError, at_home, one_line, one_line_exit


def export(
    run: str | os.PathLike,
    to: str | None = None,
    push: str | None = None,
    private: bool = False,
    weights: Literal["student", "teacher"] = "student",
    license: str | None = None,
    keep_heads: bool = False,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> Path:
    """Write a run's encoder as a native `transformers` model, with its processor or tokenizer and a model card.

    Args:
        run: folder of the run, or of one of its checkpoints.
        to: folder to write; new or empty. Default: `exported` within the run.
        push: hub repository (`user/name`) to upload the folder to afterwards.
        private: make the repository private, if it is new.
        weights: the `student` that was trained, or its `teacher` (the moving average), where the objective has one.
        keep_heads: also write the classifier or decoder of the checkpoint that training started from. What was not
            trained along is stale, and the card says so. (A family with a decoder goes out as itself then, else as
            the plain encoder.)
        dtype: of the weights in the file.
        license: licence of the weights for the model card, by the hub's name for it, such as apache-2.0.

    Returns:
        The folder.

    Raises:
        UserError: for what the user can mend; nothing is left half-written.
    """
    import torch

    from triptych.encoders.native import family_of
    from triptych.evaluation.load import backbone_of, from_run

    # transformers imports DeepSpeed to save, which says what it found unless it is told.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    folder = (Path(to) if to else Path(run) / "exported").resolve()  # through a link, into what it names
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose a folder with --to")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; choose another folder with --to")
    if push:
        check_rights(push)
    config, objective, checkpoint = from_run(run)
    family = family_of(config.modality["name"], config.run.family)
    backbone = backbone_of(objective, weights)
    head = objective.head if weights == "student" else None
    stale: list[str] = []
    if keep_heads:
        stale = heads_to_keep(family, objective, backbone, head)
    model = family.export(backbone, head, keep_heads)
    models = {"": model, **family.again(backbone, model)}
    for one in models.values():
        one.to(getattr(torch, dtype))

    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for folder_in_it, one in models.items():
            one.save_pretrained(aside / folder_in_it)
            backbone.modality.save(str(aside / folder_in_it))
        for name, content in family.files(backbone, model).items():
            (aside / name).parent.mkdir(exist_ok=True)
            (aside / name).write_text(content)
        text = card(config, family, model, backbone, checkpoint, weights, push, license, stale)
        text.save(aside / "README.md")
        aside.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        os.rename(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    print(f"{folder}: {type(model).__name__} from {checkpoint}")
    if push:
        upload(folder, push, private)
    return folder


def heads_to_keep(family, objective, backbone, head) -> list[str]:
    """Put what was trained along in the place of the heads that came; returns the names of those that are stale."""
    brought = backbone.native
    if brought is None or not brought.heads:
        raise UserError("--keep_heads: this run did not start from a checkpoint that has heads; leave it out")
    if head is not None and family.head_class(head) == brought.architecture:  # it takes the place of what came
        return []
    trained = family.trained_heads(objective)
    brought.heads = brought.heads | trained
    return sorted({name.split(".")[0] for name in brought.heads if name not in trained})


def check_rights(repository: str) -> None:
    """Refuse early what the hub would refuse late. A hub that does not answer now may do so after the export."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if repository.count("/") != 1:
        raise UserError(f"--push {repository}: a repository is named user/name")
    try:
        user = HfApi().whoami()
    except LocalTokenNotFoundError as error:
        raise UserError(f"--push {repository}: no token; run `hf auth login`, or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            return
        raise UserError(
            f"--push {repository}: the hub does not accept the token ({one_line(error)[:100]}); "
            "run `hf auth login`, or set HF_TOKEN"
        ) from error
    except Exception:  # of httpx, of sockets, of offline mode: `upload` reports them, with the folder complete
        return
    owner = repository.split("/")[0]
    names = {user["name"], *(o["name"] for o in user.get("orgs", []))}
    if owner not in names:
        raise UserError(f"--push {repository}: the token may write to {', '.join(sorted(names))}, not to {owner}")
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError(f"--push {repository}: the token may only read; make one that may write, and `hf auth login`")


def upload(folder: Path, repository: str, private: bool) -> None:
    """Create the repository if need be, and upload the folder."""
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(repository, private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Export")
    except Exception as error:
        raise UserError(
            f"--push {repository}: {one_line(error)[:200]}; {folder} is complete, so retry with: "
            f"hf upload {repository} {folder} .{' --private' if private else ''}"
        ) from error
    print(f"pushed to {repository}")


def main(argv: list[str] | None = None, program: str = "export.py") -> None:
    from jsonargparse import auto_cli

    with one_line_exit(program):
        argv = own.taken(at_home(sys.argv[1:] if argv is None else argv))
        argv = with_values(argv, ["private", "keep_heads"])
        auto_cli(export, args=argv, as_positional=True, exit_on_error=False, prog=program)


if __name__ == "__main__":
    main()
