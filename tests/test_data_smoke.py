from lplr_cli.data import DataSpec, load_dataset


def test_embedded_digits() -> None:
    data = load_dataset(DataSpec("mnist"))
    assert data.inputs.shape == (1000, 784)
