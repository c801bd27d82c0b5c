"""The command line: exit codes, and files that are whole or not there."""

import json
import runpy
import sys
import warnings

import h5py
import keras
import numpy as np
import pytest

import keras_bn
from cases_tools import images, numpy, randomize
from keras_bn import cli
from keras_bn._files import _reason, warnings_as_lines
from keras_bn.tools._copies import rebuild
from slow import slow

L = keras.layers
# What a command line says, and which tool it calls: tools have tests on each backend.
on_one = slow("asks of the backend only that Keras runs", but_on="torch")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with a model, data and some files that are neither."""
    model = keras.Sequential(
        [keras.Input((4,)), L.Dense(3), L.BatchNormalization(), L.ReLU()], name="net"
    )
    randomize(model).save(tmp_path / "net.keras")
    np.save(tmp_path / "x.npy", images(32, 4))
    np.savez(tmp_path / "x.npz", x=images(32, 4), y=np.zeros(32))
    np.savez(tmp_path / "ab.npz", a=images(32, 4), b=np.zeros(32))
    np.savez(tmp_path / "one.npz", a=images(32, 4))
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object))
    np.save(tmp_path / "wide.npy", images(32, 5))
    np.savez(tmp_path / "objects.npz", x=np.array([{}, []], dtype=object))
    (tmp_path / "torn.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:300])
    (tmp_path / "unsound.py").write_text("1 / 0")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "text.keras").write_text("not a model")
    (tmp_path / "taken.keras").write_text("precious")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def _load(path):
    return keras.saving.load_model(path)


def test_fold(folder, capsys):
    model = _load("net.keras")
    model.compile("adam", "mse")
    model.fit(images(8, 4), images(8, 3), verbose=0)
    model.save("net.keras")
    assert cli.main(["fold", "net.keras", "out.keras", "--check", "x.npy"]) == 0
    said = capsys.readouterr()
    assert "1 batch norm layers folded" in said.out
    assert not said.err
    assert [type(one) for one in _load("out.keras").layers] == [L.Dense, L.ReLU]


def test_convert_there_and_back(folder, capsys):
    assert cli.main(["convert", "net.keras", "o.keras", "--set", "momentum=0.5"]) == 0
    assert capsys.readouterr().out == "convert: 1 batch norm layers to keras_bn\n"
    norm = _load("o.keras").layers[1]
    assert (type(norm), norm.momentum) == (keras_bn.BatchNormalization, 0.5)
    command = ["convert", "o.keras", "k.keras", "--to", "keras", "--check"]
    assert cli.main(command) == 0
    x = images(3, 4)
    np.testing.assert_array_equal(
        numpy(_load("k.keras")(x)), numpy(_load("net.keras")(x))
    )


@on_one
@pytest.mark.parametrize("none", ["None", "null"])
def test_settings_are_in_json_or_python(folder, none):
    given = ["--set", f"momentum={none}", "--set", "zero_debias=False"]
    assert cli.main(["convert", "net.keras", "o.keras", *given]) == 0
    assert _load("o.keras").layers[1].momentum is None


@on_one
def test_data_by_the_names_of_inputs(folder):
    inputs = [keras.Input((size,), name=name) for size, name in ((4, "b"), (2, "a"))]
    model = keras.Model(inputs, [keras_bn.BatchNormalization()(one) for one in inputs])
    model.save("two.keras")
    np.savez("two.npz", a=images(8, 2), b=images(8, 4))
    command = ["recalibrate", "two.keras", "out.keras", "--data", "two.npz"]
    assert cli.main(command) == 0
    found = numpy(_load("out.keras").layers[2].moving_mean)
    np.testing.assert_allclose(found, images(8, 4).mean(0), atol=1e-6)
    assert cli.main(["fold", "two.keras", "folded.keras", "--check", "two.npz"]) == 0


@on_one
def test_convert_to_domains_and_back(folder, capsys):
    given = ["--to", "domain", "--set", "domains=2"]
    assert cli.main(["convert", "net.keras", "o.keras", *given]) == 0
    assert _load("o.keras").inputs[1].name == "domain"
    assert cli.main(["convert", "o.keras", "k.keras", "--set", "domain=1"]) == 0
    said = [f"convert: 1 batch norm layers to {to}" for to in ("domain", "keras_bn")]
    assert capsys.readouterr().out.splitlines() == said
    x = images(3, 4)
    np.testing.assert_allclose(
        numpy(_load("k.keras")(x)), numpy(_load("net.keras")(x)), atol=1e-5
    )


@pytest.mark.filterwarnings("always:The moving statistics of 1 layers")
def test_convert_to_layer_norm_says_what_is_lost(folder, capsys):
    assert cli.main(["convert", "net.keras", "o.keras", "--to", "layer"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("keras-bn convert: warning: The moving statistics of 1 ")
    assert type(_load("o.keras").layers[1]) is L.LayerNormalization


@keras.saving.register_keras_serializable("test_cli")
class Block(L.Layer):
    """Makes its batch norm in its constructor."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = L.BatchNormalization(name="inner")

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x):
        return self.norm(x)


def test_a_class_that_makes_its_norm_keeps_what_was_put_in(folder, monkeypatch, capsys):
    model = keras.Sequential([keras.Input((4,)), Block(name="block"), L.ReLU()])
    model.save("block.keras")
    command = ["convert", "block.keras", "out.keras", "--set", "momentum=0.5"]
    assert cli.main(command) == 0
    norm = _load("out.keras").layers[0].norm
    assert (type(norm), norm.momentum) == (keras_bn.BatchNormalization, 0.5)
    monkeypatch.setattr(rebuild, "make_lasting", lambda *_: None)
    (folder / "out.keras").unlink()
    assert cli.main(command) == 4
    assert "made anew when the file is loaded" in capsys.readouterr().err
    assert not (folder / "out.keras").exists()


def _with_config(name, change):
    """A file whose model has another config than Keras would write today."""
    model = keras.Sequential([keras.Input((4, 4, 2)), L.DepthwiseConv2D(3)])
    model.save(name)
    with h5py.File(name, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        change(config["config"]["layers"][1]["config"])
        file.attrs["model_config"] = json.dumps(config)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_the_reason_why_an_old_file_cannot_be_loaded_is_shown(folder, capsys):
    _with_config("old.h5", lambda config: config.update(groups=1))
    assert cli.main(["inspect", "old.h5"]) == 3
    error = capsys.readouterr().err
    assert "Unrecognized keyword arguments" in error
    assert "'groups': 1" in error
    assert "--import" not in error
    assert len(error) < 600


@pytest.mark.parametrize("data", ["x.npy", "x.npz", "one.npz"])
def test_recalibrate(folder, data, capsys):
    command = ["recalibrate", "net.keras", "out.keras", "--data", data]
    assert cli.main([*command, "--batch-size", "8"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("recalibrate: 1 batch norm layers, 32 samples in 4 batches")
    model = _load("out.keras")
    inputs = numpy(model.layers[0](images(32, 4)))
    np.testing.assert_allclose(
        numpy(model.layers[1].moving_mean), inputs.mean(0), atol=1e-6
    )


def test_inspect(folder, capsys):
    command = ["inspect", "net.keras", "--data", "x.npy", "--json", "--plot", "p.png"]
    code = cli.main(command)
    printed = capsys.readouterr().out
    report = json.loads(printed)
    assert '\n  "model": "net",\n' in printed
    assert code == (report["severity"] == "error")
    assert report["model"] == "net"
    assert (folder / "p.png").stat().st_size > 1000
    assert cli.main(["inspect", "net.keras"]) == 0
    assert "net: healthy, with notes" in capsys.readouterr().out


def test_inspect_exit_code_tells_of_errors(folder):
    keras.Sequential([keras.Input((4,)), L.BatchNormalization()]).save("new.keras")
    assert cli.main(["inspect", "new.keras"]) == 1


@pytest.fixture
def weights(folder):
    """A checkpoint of PyTorch's for the model in the folder."""
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    module(torch.as_tensor(images(32, 4)))
    path = folder / "weights.pth"
    torch.save({"state_dict": module.state_dict(), "epoch": 3}, path)
    torch.save(torch.nn.BatchNorm1d(5).state_dict(), folder / "five.pth")
    return module


@on_one
def test_from_torch(folder, weights, capsys):
    command = ["from-torch", "net.keras", "weights.pth", "out.keras"]
    before = _names(folder)
    dry = [*command[:3], "taken.keras", "--layers", "all", "--dry-run"]
    assert cli.main(dry) == 0
    pairs = capsys.readouterr().out
    assert pairs.startswith("2 layers matched")
    assert _names(folder) == before
    settings = ["--epsilon", "1e-5", "--momentum", "0.1", "--count", "32"]
    assert cli.main([*command, "--layers", "all", *settings]) == 0
    assert capsys.readouterr().out == pairs
    dense, norm, _ = _load("out.keras").layers
    assert (norm.epsilon, norm.momentum) == (1e-5, 0.9)
    kernel = weights[0].weight.detach().numpy().T
    np.testing.assert_array_equal(numpy(dense.kernel), kernel)
    variance = weights[1].running_var.numpy() * 31 / 32
    np.testing.assert_allclose(numpy(norm.moving_variance), variance, rtol=1e-6)


@on_one
def test_from_torch_by_a_mapping(folder, weights):
    command = ["from-torch", "net.keras", "weights.pth", "out.keras"]
    settings = ["--epsilon", "1e-5", "--key", "state_dict", "--no-strict"]
    name = _load("net.keras").layers[1].name
    assert cli.main([*command, *settings, "--map", f"{name}=1"]) == 0
    mean = weights[1].running_mean.numpy()
    np.testing.assert_array_equal(numpy(_load("out.keras").layers[1].moving_mean), mean)


ALL_OPTIONS = [
    *("--layers", "all", "--no-strict", "--key", "ema", "--map", "a=b=c"),
    *("--epsilon", "0.5", "--momentum", "0.25", "--count", "9"),
    *("--flatten", "channels_last", "--force"),
]
ALL_SETTINGS = {
    **{"layers": "all", "strict": False, "key": "ema", "epsilon": 0.5},
    **{"momentum": 0.25, "count": 9, "flatten": "channels_last"},
}


@pytest.mark.parametrize(
    ("options", "mapping", "expected"),
    [
        ([], {}, dict.fromkeys(ALL_SETTINGS) | {"layers": "norms", "strict": True}),
        (ALL_OPTIONS, {"a": "b=c"}, ALL_SETTINGS),
    ],
    ids=["none", "all"],
)
def test_from_torch_is_given_its_options(
    folder, monkeypatch, options, mapping, expected
):
    given = []

    def note(_, path, mapping, **settings):
        given.append((path.name, mapping, settings))
        if "epsilon" in settings:
            raise ValueError("enough")

    for tool in ("match_torch", "from_torch"):
        monkeypatch.setattr(cli.tools, tool, note)
    output = "taken.keras" if "--force" in options else "o.keras"
    command = ["from-torch", "net.keras", "x.npy", output]
    assert cli.main([*command, *options]) == 3
    names = ("layers", "strict", "key")
    shown = {name: expected[name] for name in names}
    assert given == [("x.npy", mapping, shown), ("x.npy", mapping, expected)]


FROM_TORCH_FAILURES = [
    (["weights.pth", "out.h5"], 2, "must be a .keras file"),
    (["none.pth", "out.keras"], 3, "the weights' file must exist"),
    (["text.keras", "out.keras"], 3, "must be a file of tensors"),
    (["weights.pth", "out.keras"], 3, "`epsilon` must be that of the PyTorch layers"),
    (["weights.pth", "out.keras", "--epsilon", "-1"], 3, "a finite number of at least"),
    (["weights.pth", "out.keras", "--key", "ema"], 3, "['state_dict']"),
    (["weights.pth", "out.keras", "--map", "bn"], 2, "--map must be LAYER=PREFIX"),
    (["weights.pth", "out.keras", "--map", "bn=0"], 3, ": --map must have paths of"),
    (["five.pth", "out.keras"], 3, "No --map helps 'batch_norm"),
    (["five.pth", "out.keras"], 3, "(--no-strict leaves out"),
]


@on_one
@pytest.mark.parametrize(("arguments", "code", "message"), FROM_TORCH_FAILURES)
def test_from_torch_failures(folder, weights, arguments, code, message, capsys):
    before = _names(folder)
    assert cli.main(["from-torch", "net.keras", *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("keras-bn from-torch: ")
    assert _names(folder) == before


FAILURES = [
    (["convert", "net.keras", "o.keras", "--set", "epsilon=1", "--check"], 3, "else"),
    # Said before any work: there is no such model.
    *(
        ([*command, "taken.keras"], 4, "taken.keras exists: --force")
        for command in (
            ["fold", "none.keras"],
            ["convert", "none.keras"],
            ["recalibrate", "none.keras", "--data", "x.npy"],
            ["from-torch", "none.keras", "none.pth"],
            ["inspect", "none.keras", "--plot"],
        )
    ),
    (["fold", "none.keras", "no/out.keras"], 4, "the folder must exist"),
    (["fold", "none.keras", "out.h5"], 2, "must be a .keras file"),
    (["fold", "none.keras", "out.keras"], 3, "must exist"),
    (["fold", "text.keras", "out.keras"], 3, "it is no .keras file"),
    (["fold", "x.npz", "out.keras"], 3, "that can be loaded"),
    (["convert", "net.keras", "out.keras", "--set", "momentum"], 2, "NAME=VALUE"),
    (["convert", "net.keras", "o.keras", "--set", "=3"], 2, "NAME=VALUE"),
    (["convert", "net.keras", "o.keras", "--set", "renorm=yes"], 2, "JSON or Python"),
    (["convert", "net.keras", "out.keras", "--set", "size=3"], 3, "`size` is not"),
    (["inspect", "net.keras", "--data", "wide.npy"], 3, "(None, 4)"),
    (
        ["inspect", "net.keras", "--data", "none.npy"],
        3,
        "--data must be a .npy or .npz",
    ),
    (
        ["fold", "net.keras", "o.keras", "--check", "no.npy"],
        3,
        "--check must be a .npy",
    ),
    (["inspect", "net.keras", "--data", "text.keras"], 3, ".npy or .npz"),
    (["inspect", "net.keras", "--data", "ab.npz"], 3, "with ['a', 'b']"),
    (["fold", "net.keras", "o.keras", "--check", "ab.npz"], 3, "--check must hold the"),
    (["inspect", "net.keras", "--data", "objects.npy"], 3, "be a .npy or .npz"),
    (["inspect", "net.keras", "--data", "objects.npz"], 3, "be a .npy or .npz"),
    (["inspect", "net.keras", "--data", "torn.npz"], 3, "be a .npy or .npz"),
    (["inspect", "net.keras", "--import", "no_such_module"], 2, "no_such_module"),
    (["inspect", "net.keras", "--import", "unsound"], 2, "ZeroDivisionError"),
    (["inspect", "net.keras", "--plot", "p.doc"], 2, "one of .png, .pdf, .svg"),
]


@on_one
@pytest.mark.parametrize(("command", "code", "message"), FAILURES)
def test_failures_have_a_code_and_leave_no_file(folder, command, code, message, capsys):
    before = _names(folder)
    assert cli.main(command) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith(f"keras-bn {command[0]}: ")
    assert _names(folder) == before
    assert (folder / "taken.keras").read_text() == "precious"


def test_a_model_that_fails_is_3_not_1(folder, monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(cli.tools, "inspect", fails)
    assert cli.main(["inspect", "net.keras", "--data", "x.npy"]) == 3
    assert "the model fails: RuntimeError" in capsys.readouterr().err


# The command and its options, the tool, and what it is given besides the model.
OPTIONS = {
    "inspect": (
        ["inspect", "net.keras"],
        "inspect",
        {"steps": None, "batch_size": 128},
    ),
    "inspect, some": (
        ["inspect", "net.keras", "--steps", "1", "--batch-size", "9"],
        "inspect",
        {"steps": 1, "batch_size": 9},
    ),
    "fold": (
        ["fold", "net.keras", "o.keras", "--check"],
        "fold",
        {"explain": True, "check": True},
    ),
    "convert": (
        ["convert", "net.keras", "o.keras"],
        "convert",
        {"to": "keras_bn", "check": False},
    ),
    "convert, some": (
        [
            *("convert", "net.keras", "o.keras", "--to", "group"),
            *("--set", "groups=2", "--set", "epsilon=0.5"),
        ],
        "convert",
        {"to": "group", "check": False, "groups": 2, "epsilon": 0.5},
    ),
    "recalibrate": (
        ["recalibrate", "net.keras", "o.keras", "--data", "x.npy"],
        "recalibrate",
        {
            **{"steps": None, "method": "population", "prior": None, "verbose": 0},
            **{"batch_size": 32, "layer_by_layer": False, "include_frozen": False},
        },
    ),
    "recalibrate, all": (
        [
            *("recalibrate", "net.keras", "o.keras", "--data", "x.npy", "--steps", "2"),
            *("--batch-size", "8", "--method", "ema", "--prior", "1.5"),
            *("--layer-by-layer", "--include-frozen"),
        ],
        "recalibrate",
        {
            **{"steps": 2, "method": "ema", "prior": 1.5, "verbose": 0},
            **{"batch_size": 8, "layer_by_layer": True, "include_frozen": True},
        },
    ),
}


@on_one
@pytest.mark.parametrize(("command", "tool", "expected"), OPTIONS.values(), ids=OPTIONS)
def test_options_come_to_the_tool(folder, monkeypatch, command, tool, expected):
    given = {}

    def note(*_, **settings):
        given.update(settings)
        raise ValueError("enough")

    monkeypatch.setattr(cli.tools, tool, note)
    assert cli.main(command) == 3
    assert given == expected


def test_a_bar_on_a_terminal_only(folder, monkeypatch, capsys):
    command = ["recalibrate", "net.keras", "out.keras", "--data", "x.npy"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(command) == 0
    assert "1/1" in capsys.readouterr().out


@pytest.mark.filterwarnings("always:(of a library|see)")
def test_other_warnings_are_shown_as_ever(capsys, recwarn):
    shown = warnings.showwarning
    with warnings_as_lines("inspect"):
        warnings.warn("of a library", RuntimeWarning, stacklevel=1)
        assert not capsys.readouterr().err
        warnings.warn("see `mapping`", UserWarning, stacklevel=1)
    assert [str(one.message) for one in recwarn] == ["of a library"]
    assert capsys.readouterr().err == "keras-bn inspect: warning: see --map\n"
    assert warnings.showwarning is shown


def _own_loss(y, p):
    return (y - p) ** 2


def test_a_model_without_its_loss_is_read_all_the_same(folder, capsys):
    model = _load("net.keras")
    model.compile("sgd", _own_loss)
    model.save("own.keras")
    assert cli.main(["inspect", "own.keras"]) == 0
    assert "loaded without its compile state: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("", "Failed"),
        (" one line \n\n", "one line"),
        ("first\nlast", "first ... last"),
        ("a " * 80 + "\nconfig\nlast", "a " * 58 + "... ... last"),
    ],
)
def test_the_reason_is_short(message, reason):
    class Failed(Exception):
        pass

    assert _reason(Failed(message)) == reason


def test_a_plot_without_matplotlib_is_said(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["inspect", "net.keras", "--plot", "p.png"]) == 4
    assert "could not be written: `plot` needs matplotlib" in capsys.readouterr().err


def test_what_came_meanwhile_is_not_overwritten(folder, monkeypatch, capsys):
    fold = cli.tools.fold

    def late(*arguments, **settings):
        (folder / "out.keras").write_text("precious")
        return fold(*arguments, **settings)

    monkeypatch.setattr(cli.tools, "fold", late)
    assert cli.main(["fold", "net.keras", "out.keras"]) == 4
    assert "out.keras exists: --force overwrites it" in capsys.readouterr().err
    assert (folder / "out.keras").read_text() == "precious"
    assert not [path for path in folder.iterdir() if path.name.startswith(".keras-bn")]


def test_force_overwrites(folder):
    assert cli.main(["fold", "net.keras", "taken.keras", "--force"]) == 0
    assert len(_load("taken.keras").layers) == 2
    (folder / "p.png").write_text("taken")
    assert cli.main(["inspect", "net.keras", "--plot", "P.PNG"]) == 0
    assert cli.main(["inspect", "net.keras", "--plot", "p.png", "--force"]) == 0
    assert (folder / "p.png").stat().st_size > 1000


def test_a_failing_write_leaves_the_old_file(folder, monkeypatch):
    def save(self, path, **_):
        # Where a file system moves it at once.
        assert path.parent.parent.resolve() == folder
        assert path.parent.name.startswith(".keras-bn-")
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(keras.Model, "save", save)
    before = _names(folder)
    assert cli.main(["fold", "net.keras", "taken.keras", "--force"]) == 4
    assert _names(folder) == before
    assert (folder / "taken.keras").read_text() == "precious"


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["melt"],
        ["fold"],
        ["recalibrate", "a", "b"],
        ["inspect", "a", "--steps", "0"],
        ["inspect", "a", "--batch-size", "many"],
        ["convert", "a", "b", "--to", "flax"],
        ["recalibrate", "a", "b", "--data", "c", "--method", "mean"],
        ["from-torch", "a", "b", "c", "--layers", "some"],
        ["from-torch", "a", "b", "c", "--flatten", "rows"],
    ],
)
def test_a_wrong_command_line_is_2(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(command)
    assert caught.value.code == 2
    assert "usage: keras-bn" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [[], *([one.name] for one in cli.COMMANDS), [cli.BENCHMARK]]
)
def test_help_tells_of_exit_codes(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--help"])
    assert caught.value.code == 0
    lines = "" if command == [cli.BENCHMARK] else "\n  0  done\n  1  inspect: "
    assert f"exit codes:{lines}" in capsys.readouterr().out


# How the help shows the values of options.
VALUES = {
    "fold": ["--import MODULE", "--check [FILE]"],
    "convert": ["--set NAME=VALUE"],
    "from-torch": ["--map LAYER=PREFIX"],
}


def test_help_tells_of_every_command_and_argument():
    parser = cli._parser()
    (commands,) = parser._subparsers._group_actions
    assert commands.metavar == "command"
    text = " ".join(parser.format_help().split())
    assert " Tools for batch normalization in Keras models. " in text
    assert f" {cli.BENCHMARK} Time the layer, or the tools. " in text
    for command in cli.COMMANDS:
        one = commands.choices[command.name]
        assert f" {command.help} " in text
        assert one.description == command.help
        assert [each.dest for each in one._actions if not each.help] == []
        shown = one.format_help()
        assert [
            each for each in VALUES.get(command.name, ()) if each not in shown
        ] == []


@on_one
def test_benchmark_is_handed_on(folder, capsys):
    command = ["benchmark", "--shape", "4x6x6x8", "--rounds", "1"]
    assert cli.main([*command, "--json", "out.json"]) == 0
    assert "4x6x6x8" in capsys.readouterr().out
    assert json.loads((folder / "out.json").read_text())["rows"]
    assert cli.main([*command, "--json", "out.json"]) == 4
    assert capsys.readouterr().err.startswith("keras-bn benchmark: out.json exists")
    with pytest.raises(SystemExit) as caught:
        cli.main(("benchmark", "--fold"))
    assert caught.value.code == 2
    assert "usage: keras-bn benchmark" in capsys.readouterr().err


def test_custom_layers_are_imported(folder, monkeypatch, capsys):
    monkeypatch.syspath_prepend(folder)
    (folder / "own_layer.py").write_text(
        "import keras\n"
        "@keras.saving.register_keras_serializable('own')\n"
        "class Twice(keras.layers.Layer):\n"
        "    def call(self, x):\n"
        "        return 2 * x\n"
    )
    import own_layer

    layers = [L.Dense(2), L.BatchNormalization(), own_layer.Twice()]
    keras.Sequential([keras.Input((4,)), *layers]).save("own.keras")
    # As in another process, where nobody has imported it.
    command = ["fold", "own.keras", "out.keras"]
    keras.saving.get_custom_objects().pop("own>Twice")
    del sys.modules["own_layer"]
    assert cli.main(command) == 3
    assert "--import MODULE" in capsys.readouterr().err
    # Found, before others of its name, in the working directory.
    sys.path.remove(str(folder))
    monkeypatch.syspath_prepend(folder / "others")
    (folder / "others").mkdir()
    (folder / "others/own_layer.py").write_text("raise ImportError('another')")
    paths = [*sys.path]
    monkeypatch.setattr(sys, "argv", ["", *command, "--import", "own_layer"])
    with pytest.raises(SystemExit) as ended:  # `python -m keras_bn`
        runpy.run_module("keras_bn", run_name="__main__")
    assert ended.value.code == 0
    assert sys.path == paths
    assert "1 batch norm layers folded" in capsys.readouterr().out
