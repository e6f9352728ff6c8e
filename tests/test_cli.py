"""The command line as a newcomer, a pipe and a script meet it."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from architectures import model_of
from conftest import character_tokenizer
from packaging.requirements import Requirement
from tiny import tiny_model

import cdlearn
from cdlearn.cli import compare, doctor, options
from cdlearn.cli import main as cli

CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Flags that name a tiny pair on disk, with a chat template."""
    root = tmp_path_factory.mktemp("pair")
    for name, seed in (("expert", 1), ("amateur", 2)):
        model = tiny_model("llama", seed=seed)
        model.generation_config.eos_token_id = None
        model.config.eos_token_id = None
        model.save_pretrained(root / name)
        character_tokenizer(chat_template=CHAT).save_pretrained(root / name)
    return ["--expert", str(root / "expert"), "--amateur", str(root / "amateur"), "--device", "cpu"]


@pytest.fixture
def run(models, capsys):
    """Run the command line in this process; returns (exit code, stdout, stderr)."""

    def call(*argv, with_models=True):
        try:
            code = cli.main([*argv, *(models if with_models else [])])
        except SystemExit as end:
            code = end.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def expected(models, prompt, source, **settings):
    """What the library gives for a prompt, without the command line."""
    pair = cdlearn.load_pair(models[1], models[3], device="cpu")
    return cdlearn.generate(source(pair), prompt, tokenizer=pair.tokenizer, progress=False, **settings)


SOURCES = {
    "contrastive": lambda pair: cdlearn.Contrast(pair.expert, pair.amateur, beta=0.5),
    "greedy": lambda pair: pair.expert,
    "amateur": lambda pair: pair.amateur,
    "dola": lambda pair: cdlearn.DoLa(pair.expert),
    "speculative": lambda pair: pair.expert,  # greedy: the same tokens, drafted by the amateur
    "speculative-contrastive": lambda pair: cdlearn.Contrast(pair.expert, pair.amateur, beta=0.5),
}


@pytest.mark.parametrize("method", SOURCES)
def test_each_method_prints_what_the_library_gives(run, models, method):
    code, out, err = run("--prompt", "Hi", "--method", method, "--no-chat-template", "--max-new-tokens", "12")
    made = expected(models, "Hi", SOURCES[method], max_new_tokens=12)
    assert (code, out, err) == (0, made.text + "\n", "")


def test_the_contrast_flags_reach_the_source(run, models):
    flags = ["--alpha", "0.3", "--strength", "0.7", "--tau-amateur", "0.5", "--top-k", "5"]
    code, out, _ = run("--prompt", "Hi", "--no-chat-template", "--max-new-tokens", "12", "--json", *flags)
    record = json.loads(out)
    numbers = {"alpha": 0.3, "strength": 0.7, "amateur_temperature": 0.5, "top_k": 5}
    assert code == 0 and record["settings"].items() >= numbers.items()
    made = expected(models, "Hi", lambda p: cdlearn.Contrast(p.expert, p.amateur, **numbers), max_new_tokens=12)
    assert record["token_ids"] == made.token_ids
    assert record["text"] == made.text and record["prompt"] == "Hi" and record["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ([], {"alpha": 0.1, "beta": 0.5, "strength": None}),
        (["--tau-amateur", "2"], {"strength": 1.0, "amateur_temperature": 2.0, "beta": None}),
        (["--alpha", "0"], {"alpha": None}),
        (["--method", "greedy", "--repetition-penalty", "1.5"], {"repetition_penalty": 1.5, "temperature": None}),
        (["--method", "speculative-contrastive", "--gamma", "2"], {"gamma": 2}),
        (["--method", "dola", "--layers", "1", "--repetition-penalty", "2"], {"layers": [1], "repetition_penalty": 2}),
    ],
)
def test_settings_hold_what_the_flags_say(run, flags, settings):
    record = json.loads(run("--prompt", "Hi", "--json", "--max-new-tokens", "9", *flags)[1])
    assert {key: record["settings"].get(key) for key in settings} == settings
    assert record["stats"].get("drafted", 0) <= 2 * record["stats"].get("rounds", 0)


def test_streaming_and_not_streaming_print_the_same(run):
    streamed = run("--prompt", "Hi", "--max-new-tokens", "20")
    assert streamed == run("--prompt", "Hi", "--max-new-tokens", "20", "--no-stream")
    assert len(streamed[1]) > 10


def test_sampling_follows_the_seed(run):
    def draw(seed):
        return run("--prompt", "Hi", "--method", "sample", "--seed", seed, "--max-new-tokens", "30")[1]

    assert draw("1") == draw("1") != draw("2")


def test_the_chat_template_is_used_unless_told_not_to(run, models):
    with_template = run("--prompt", "Hi", "--max-new-tokens", "12")[1]
    assert with_template == expected(models, "[user]Hi[a]", SOURCES["contrastive"], max_new_tokens=12).text + "\n"
    system = run("--prompt", "Hi", "--max-new-tokens", "12", "--system-prompt", "Yes")[1]
    made = expected(models, "[system]Yes[user]Hi[a]", SOURCES["contrastive"], max_new_tokens=12)
    assert system == made.text + "\n" != with_template


def test_one_model_is_enough_where_no_amateur_is_needed(run, models):
    code, out, _ = run("--prompt", "Hi", "--method", "greedy", *models[:2], "--max-new-tokens", "3", with_models=False)
    assert code == 0 and out.strip("\n")
    code, _, err = run("--prompt", "Hi", *models[:2], with_models=False)
    assert code == 1 and "--amateur" in err and "greedy, sample, dola" in err


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["--prompt", "x", "--alpha", "1.5"], ["--alpha", "1.5"]),
        (["--prompt", "x", "--alpha", "lots"], ["--alpha", "lots"]),
        (["--prompt", "x", "--beta", "nan"], ["--beta", "nan"]),
        (["--prompt", "x", "--strength", "-1"], ["--strength", "-1"]),
        (["--prompt", "x", "--temperature", "inf"], ["--temperature", "inf"]),
        (["--prompt", "x", "--max-new-tokens", "0"], ["--max-new-tokens", "0"]),
        (["--prompt", "x", "--beta", "1", "--strength", "2"], ["--beta 1", "--strength 2"]),
        (["--prompt", "x", "--beta", "1", "--tau-amateur", "2"], ["--beta 1", "--tau-amateur 2"]),
        (["--prompt", "x", "--method", "greedy", "--beta", "1"], ["--beta 1", "greedy", "speculative-contrastive"]),
        (["--prompt", "x", "--method", "greedy", "--temperature", "1"], ["--temperature", "greedy"]),
        (["--prompt", "x", "--method", "dola", "--top-k", "3"], ["--top-k 3", "dola", "contrastive"]),
        (["--prompt", "x", "--gamma", "2"], ["--gamma 2", "contrastive", "speculative"]),
        (["--prompt", "x", "--method", "beam"], ["--method", "beam"]),
        (["--prompt", "x", "--system-prompt", "s", "--no-chat-template"], ["--system-prompt", "--no-chat-template"]),
        (["hello"], ["hello", "--prompt"]),
        (["--methd", "dola", "--prompt", "x"], ["--methd"]),
        (["--prompt", ""], ["--prompt"]),
        (["--prom", "x"], ["--prom"]),
        (["compare", "--methods", "greedy", "hello"], ["'hello'"]),
        (["compare", "x", "--methods", "contrastiv"], ["contrastive?"]),
        (["compare", "x", "--methods", "greedy beta=1"], ["beta=1", "greedy"]),
        (["compare", "x", "--methods", "contrastive beta=1 strength=2"], ["beta=1", "strength=2"]),
        (["compare", "x", "--methods", "contrastive beta=-1"], ["beta=-1"]),
        (["compare", "x", "--methods", "contrastive choices=reference"], ["choices=reference"]),
        (["compare", "x", "--methods", "greedy", "amateur", "--beta", "1"], ["--beta 1", "greedy"]),
        (["compare", "x", "--format", "html"], ["--format", "html"]),
        (["compare", "x", "--methods", "contrastive beta=1", "--beta", "2"], ["--beta 2", "changes nothing"]),
        (["compare", "x", "--gamma", "2"], ["--gamma 2", "speculative"]),
        (["compare", "x", "--layers", "low"], ["--layers low", "dola"]),
        (["compare", "x", "--repetition-penalty", "0"], ["--repetition-penalty", "more than 0"]),
        (["--prompt", "x", "--repetition-penalty", "0"], ["--repetition-penalty", "more than 0"]),
        (["--prompt", "x", "--layers", "low"], ["--layers low", "contrastive", "dola"]),
    ],
)
def test_usage_errors_exit_2_and_name_flag_and_value(run, argv, names):
    code, out, err = run(*argv, with_models=False)
    assert code == 2 and out == ""
    assert all(name in err for name in names), err


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["--prompt", "x", "--expert", "./nowhere", "--amateur", "amateur"], ["expert", "./nowhere"]),
        (["--prompt", "x", "--expert", "./nowhere"], ["--expert", "./nowhere"]),
        (["--prompt", "x", "--device", "gpu"], ["device", "gpu"]),
        (["--prompt", "x", "--expert", "some/model", "--amateur", "other/model"], ["some/model"]),
        (["--prompt", "x", "--expert", "some/model", "--method", "early"], ["some/model", "--amateur"]),
        (["--prompt", "x", "--method", "dola", "--layers", "first"], ["layers", "first"]),
        (["eval", "--prompts-file", "./nowhere.jsonl"], ["--prompts-file", "nowhere.jsonl"]),
        (["compare", "--prompts-file", "./nowhere.txt"], ["--prompts-file", "nowhere.txt"]),
    ],
)
def test_other_errors_exit_1_with_one_line(run, argv, names):
    code, out, err = run(*argv, with_models=False)
    assert code == 1 and out == ""
    assert err.startswith("cdlearn: error: ") and err.count("\n") == 1
    assert all(name in err for name in names), err


def test_a_prompt_too_long_is_one_line_too(run):
    code, _, err = run("--prompt", "x" * 300)
    assert code == 1 and "context of 256" in err and err.count("\n") == 1


def test_help_shows_examples_and_every_command(run):
    code, out, _ = run("--help", with_models=False)
    assert code == 0 and "examples:" in out and 'echo "Ada had a red" | cdlearn' in out
    for name in cli.COMMANDS:
        assert name in out
        code, out_of_command, _ = run(name, "--help", with_models=False)
        assert code == 0 and "example" in out_of_command or name == "doctor"
    assert run("--version", with_models=False)[1] == f"cdlearn {cdlearn.__version__}\n"


def test_every_promised_flag_exists():
    flags = set(re.findall(r"--[a-z-]+", cli.build_parser().format_help()))
    promised = "prompt expert amateur alpha strength beta top-k tau-amateur temperature max-new-tokens method"
    promised += " system-prompt no-stream no-chat-template seed json"
    assert {"--" + name for name in promised.split()} <= flags


def test_a_pipe_in_gives_a_continuation_out(run, models, monkeypatch):
    def pipe(text):  # as a C locale opens it
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="ascii"))

    flags = ["--no-stream", "--max-new-tokens", "12", "--no-chat-template"]
    pipe("Hi\n")
    made = expected(models, "Hi", SOURCES["contrastive"], max_new_tokens=12)
    assert run(*flags) == (0, made.text + "\n", "")
    pipe("été 🙂")
    assert json.loads(run("--json", "--max-new-tokens", "2", with_models=False)[1])["prompt"] == "été 🙂"
    pipe("")
    code, _, err = run(*flags)
    assert code == 2 and "standard input" in err and "--prompt" in err


# ---- as its own process


def test_a_closed_pipe_ends_quietly(models):
    command = f"{sys.executable} -m cdlearn --prompt Hi --max-new-tokens 200 {' '.join(models)} | head -c 5"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, timeout=300)
    assert (done.returncode, done.stderr, len(done.stdout)) == (0, b"", 5)


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("--prompt x >&-", 1, "standard output is closed"),
        ("compare x >&- <&-", 1, "standard output is closed"),
        ("<&-", 2, "--prompt"),
        ("compare <&-", 2, "--prompts-file"),
        ("eval -n 1 --tasks facts --out=FILE/below", 1, "--out FILE/below"),
        ("eval -n 1 --tasks facts --json FILE/below", 1, "--json FILE/below"),
    ],
)
def test_closed_streams_and_outputs_that_cannot_be_written_are_one_line(command, code, words, tmp_path):
    (tmp_path / "FILE").write_text("")
    line = f"{sys.executable} -m cdlearn {command}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == code


def test_utf8_in_and_out_with_a_c_locale():
    env = dict(os.environ, LC_ALL="C", LANG="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "cdlearn", "--json", "--max-new-tokens", "3", "--prompt", "Ada 🙂 été"]
    done = subprocess.run(command, capture_output=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout.decode("utf-8"))["prompt"] == "Ada 🙂 été"


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_keeps_the_text_so_far_and_exits_130(models):
    command = [sys.executable, "-u", "-m", "cdlearn", "--prompt", "Hi", "--max-new-tokens", "240", *models]
    # a shell's background job ignores the interrupt, and its children inherit that: start as from a terminal
    listening = {} if os.name == "nt" else {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=dict(os.environ), **pipes, **listening)
    first = process.stdout.read(1)  # the text has begun
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=120)
    assert process.returncode == 130 and b"Traceback" not in err
    assert (first + rest).endswith(b"\n") and len(first + rest) < 230


# ---- compare and demo


def test_compare_gives_each_method_its_own_text(run, models):
    code, out, _ = run("compare", "Hi", "Ho ho", "--format", "json", "--no-chat-template", "--max-new-tokens", "10")
    records = json.loads(out)
    assert code == 0
    assert [(r["prompt"], r["method"]) for r in records] == [
        (prompt, method)
        for prompt in ("Hi", "Ho ho")
        for method in ("greedy", "amateur", "sample top_p=0.95", "contrastive")
    ]
    for record in records:
        if record["method"] in SOURCES:
            made = expected(models, record["prompt"], SOURCES[record["method"]], max_new_tokens=10)
            assert record["token_ids"] == made.token_ids
    drawn = [r["settings"] for r in records if r["method"] == "sample top_p=0.95"]
    assert len(drawn) == 2 and all(s["top_p"] == 0.95 and s["temperature"] == 1.0 for s in drawn)


def test_compare_takes_numbers_in_a_method_and_flags_for_the_others(run):
    methods = ["contrastive", "contrastive beta=2", "contrastive strength=1 alpha=0", "greedy", "contrastive beta=3"]
    flags = ["--beta", "3", "--alpha", "0.3", "--max-new-tokens", "2", "--format", "json"]
    records = json.loads(run("compare", "Hi", *flags, "--methods", *methods)[1])
    flagged = [" alpha=0.3 beta=3.0", " alpha=0.3", "", "", " alpha=0.3"]
    assert [record["method"] for record in records] == [a + b for a, b in zip(methods, flagged)]
    numbers = [{k: record["settings"].get(k) for k in ("alpha", "beta", "strength")} for record in records[:3]]
    assert numbers == [
        {"alpha": 0.3, "beta": 3.0, "strength": None},
        {"alpha": 0.3, "beta": 2.0, "strength": None},
        {"alpha": None, "beta": None, "strength": 1.0},
    ]


def test_flags_of_compare_reach_the_methods_that_take_them(run, models):
    flags = ["--repetition-penalty", "1.3", "--layers", "0, 1", "--temperature", "0.7", "--gamma", "2"]
    methods = ["greedy", "dola", "speculative", "sample temperature=2", "contrastive"]
    short = ["--max-new-tokens", "8", "--format", "json", "--no-chat-template"]
    records = json.loads(run("compare", "Hi", *short, *flags, "--methods", *methods)[1])
    names = ("repetition_penalty", "temperature", "layers", "gamma")
    numbers = [[record["settings"].get(name) for name in names] for record in records]
    assert numbers == [
        [1.3, None, None, None],
        [1.3, 0.7, [0, 1], None],
        [1.3, 0.7, None, 2],
        [1.3, 2.0, None, None],
        [1.3, 0.7, None, None],
    ]
    made = expected(models, "Hi", SOURCES["greedy"], max_new_tokens=8, repetition_penalty=1.3)
    assert records[0]["token_ids"] == made.token_ids
    assert records[0]["stats"]["new_tokens"] == 8 and records[2]["stats"]["rounds"] > 0


def test_a_line_separator_is_part_of_a_piped_prompt(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("a\u2028b\r\nc\n".encode()), encoding="utf-8"))
    made = run("compare", "--max-new-tokens", "2", "--methods", "greedy", "--format", "json", "--no-chat-template")[1]
    assert [record["prompt"] for record in json.loads(made)] == ["a\u2028b", "c"]


def test_compare_reads_files_and_pipes(run, tmp_path, monkeypatch):
    flags = ["--max-new-tokens", "3", "--methods", "greedy"]
    (tmp_path / "p.txt").write_text("Hi\n\nHo\n", encoding="utf-8-sig")
    code, from_file, _ = run("compare", "--prompts-file", str(tmp_path / "p.txt"), *flags)
    assert code == 0 and "> Hi" in from_file and "> Ho" in from_file
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hi\n\nHo\n")))
    assert run("compare", *flags)[1] == from_file


def groups(text, prompts=("p",), methods=("greedy", "amateur", "contrastive")):
    return [[{"prompt": prompt, "method": method, "text": text} for method in methods] for prompt in prompts]


@pytest.mark.parametrize(
    "text", ["plain words here " * 9, "🙂🙂 wide 漢字漢字漢字 " * 6, "onelongword" * 12, "a\nb\n\nc"]
)
@pytest.mark.parametrize("width", [20, 60, 110])
def test_table_lines_fit_the_width_and_lose_nothing(text, width):
    table = compare.as_table(groups(text), width=width)
    assert max(sum(map(compare.cells, line)) for line in table.splitlines()) <= width
    solid = re.sub(r"[\s|]", "", text)
    if width == 110:
        bodies = [line.split(" | ") for line in table.splitlines()[3:]]
        columns = ["".join(b[k].replace(" ", "") for b in bodies if len(b) > k) for k in range(3)]
        assert columns[0] == solid
    assert table.count("[expert,") == (width < 84)


def test_two_equal_prompts_stay_two_rows():
    assert len(compare.as_markdown(groups("t", prompts=("p", "p"))).splitlines()) == 4
    assert compare.as_table(groups("t", prompts=("p", "p")), width=100).count("> p") == 2


def test_untrusted_text_reaches_neither_terminal_nor_markdown():
    nasty = "\x1b[2J<script>|`\r\x07"
    assert "\x1b" not in compare.as_table(groups(nasty), width=100)
    markdown = compare.as_markdown(groups(nasty, methods=("greedy",)))
    assert "<script>" not in markdown and "\x1b" not in markdown
    assert re.sub(r"\\.", "", markdown.splitlines()[2]).count("|") == 3
    assert options.clean("a\tb\n\x1b") == "a\tb\n\\x1b"


def test_columns_have_their_roles_colour_where_asked():
    rows = groups("Ada had", methods=("greedy", "contrastive"))
    for width in (100, 20):
        plain, painted = (compare.as_table(rows, width=width, colour=colour) for colour in (False, True))
        assert "\x1b" not in plain and "\x1b[34mexpert" in painted.replace("[expert", "expert")
        assert re.sub(r"\x1b\[\d+m", "", painted) == plain


def test_demo_shows_three_columns_and_ends_without_a_terminal(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = run("demo", "--max-new-tokens", "5", with_models=False)
    assert code == 0
    for word in ("expert, greedy", "amateur, greedy", "contrastive (beta 0.5)", *compare.DEMO_PROMPTS):
        assert word in " ".join(out.split()), word


def test_no_arguments_on_a_terminal_is_the_demo_and_takes_prompts():
    import pty

    leader, follower = pty.openpty()
    env = dict(os.environ, COLUMNS="120", TERM="dumb", OMP_NUM_THREADS="1")
    process = subprocess.Popen(
        [sys.executable, "-m", "cdlearn"], stdin=follower, stdout=follower, stderr=follower, env=env
    )
    os.close(follower)
    seen, sent, start = "", 0, time.time()
    while process.poll() is None and time.time() - start < 120:
        try:
            seen += os.read(leader, 65536).decode("utf-8", "replace")
        except OSError:  # the other end is gone
            break
        if seen.count("prompt: ") > sent:
            sent += 1
            os.write(leader, b"Zoe had a green kite\n" if sent == 1 else b"\n")
    assert process.wait(30) == 0, seen
    assert seen.count("contrastive (beta 0.5)") == len(compare.DEMO_PROMPTS) + 1
    assert "> Zoe had a green kite" in seen


# ---- doctor


def test_doctor_finds_nothing_wrong_here(run):
    code, out, _ = run("doctor", with_models=False)
    assert code == 0, out
    for word in ("python", "torch", "transformers", "device", "model cache", "jupyterlab", "embedded pair", "methods"):
        assert re.search(rf"^ok +{word}", out, re.M), (word, out)
    assert out.endswith("everything works\n")


def test_doctor_describes_the_models_it_is_given(run, tmp_path):
    code, out, _ = run("doctor", "--expert", "early", "--amateur", "amateur", with_models=False)
    assert code == 0 and re.search(r"^expert +embedded early: llama, .*float32 on cpu", out, re.M)
    assert re.search(r"^amateur +embedded amateur: ", out, re.M) and re.search(r"^tokens +\d+ shared", out, re.M)
    for role in ("expert", "amateur"):
        assert all(re.search(rf"^ok +{role}: {what}", out, re.M) for what in ("cache", "batches", "layers"))
    code, _, error = run("doctor", "--expert", str(tmp_path / "none.gguf"), with_models=False)
    assert code == 1 and "no such file" in error


@pytest.mark.parametrize(
    "family, notes",
    [
        ("Llama", []), ("MPT", ["batches"]), ("Mamba", ["cache", "batches"]), ("Mamba 2", ["batches"]),
        ("BERT, as a decoder", ["layers"]), ("MiniMax", ["cache", "batches"]),
    ],
)  # fmt: skip
def test_doctor_says_what_is_slow_or_impossible_with_a_model(family, notes):
    found = list(doctor.check_model("expert", model_of(family)))
    assert [what for _, what, _ in found] == ["expert: cache", "expert: batches", "expert: layers"]
    assert [what.split()[-1] for state, what, _ in found if state == doctor.NOTE] == notes


@pytest.mark.parametrize(
    "has, says", [(True, "bfloat16 for .*float32: twice"), (False, "float32 for .*half the memory")]
)
def test_doctor_names_the_dtype_and_what_the_other_costs(has, says, monkeypatch):
    monkeypatch.setattr(doctor, "native", lambda device, dtype: has)
    assert any(what == "device" and re.search(says, detail) for _, what, detail in doctor.check_installation())


def test_a_mistyped_flag_or_command_gets_a_guess(run):
    assert "did you mean --method?" in run("--metod", "greedy", "--prompt", "x", with_models=False)[2]
    assert "did you mean compare?" in run("compar", "x", with_models=False)[2]


@pytest.mark.parametrize("line, state", [("torch>=99", "outside >=99"), ("nobody-has-this", "not installed")])
def test_doctor_holds_versions_against_their_ranges(line, state):
    found = doctor.check_requirement(Requirement(line))
    assert found[0] == "BROKEN" and state in found[2] and "fix: pip install" in found[2]


def test_doctor_names_what_is_broken_and_its_fix(run, monkeypatch, tmp_path):
    monkeypatch.setattr("cdlearn.pairs.loading.EMBEDDED", tmp_path)
    code, out, _ = run("doctor", with_models=False)
    assert code == 1 and re.search(r"^BROKEN +embedded pair .*fix: ", out, re.M)
