"""Compiled, an objective has the losses that it has uncompiled."""

import pytest
import support

CELLS = {
    "image mae": {},
    "text masked": {"modality": {"row_length": 32}},
}


def losses(folder: str, cell: str, settings: dict, compiled: bool) -> list[float]:
    from triptych import train

    modality, objective = cell.split()
    support.table_of(modality).to_parquet(f"{folder}/data.parquet")
    run = {"compile": compiled, "max_steps": 6, "logging_steps": 1, "data": {"name": f"{folder}/data.parquet"}}
    train.pretrain(support.config(modality, objective, f"{folder}/{compiled}", **(run | settings)))
    return [line["loss"] for line in support.metrics(f"{folder}/{compiled}")]


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_compiled_losses_are_the_same(launch, cell, tmp_path):
    ran = [
        launch(losses, 1, folder=str(tmp_path), cell=cell, settings=CELLS[cell], compiled=c).results(400)[0]
        for c in (False, True)
    ]
    assert len(ran[0]) == 6
    assert ran[1] == pytest.approx(ran[0], rel=1e-4)
