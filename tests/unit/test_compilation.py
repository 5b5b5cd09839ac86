"""A compiler that fails: before the run, in its first step, on one rank of two."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._dynamo.exc import RestartAnalysis
from torch.distributed import HashStore, PrefixStore

from fastmoco import kept_checks
from fastmoco.errors import UsageError
from fastmoco.moco.collectives import gather_rows
from fastmoco.ranks import Ranks
from fastmoco.train import compilation
from fastmoco.train.compilation import resolve_compile
from fastmoco.train.settings import Compile
from tests.ranks import run_ranks
from tests.steps import differing, make_batch, make_step, tensors_of

CPU = torch.device("cpu")


class FailsBackward(torch.autograd.Function):
    """A backward pass that is compiled only when it is called, and fails then."""

    @staticmethod
    def forward(ctx, loss):
        del ctx
        return loss.clone()

    @staticmethod
    def backward(*_):
        raise RuntimeError("backend='inductor' raised:\nCppCompileError: no such header\nmore")


def fails_at_once(_, **__):
    def call(*_):
        raise LookupError("no such header")

    return call


def fails_in_the_backward_pass(function, **_):
    def call(*arguments):
        result = function(*arguments)
        output = result[0] if function.__name__ == "_plain_forward" else result
        if hasattr(output, "loss"):
            output.loss = FailsBackward.apply(output.loss)
        return result

    return call


@pytest.mark.parametrize(
    ("broken", "settings"),
    [
        (fails_at_once, {}),
        (fails_in_the_backward_pass, {}),
        (fails_in_the_backward_pass, {"accumulate": 2}),
    ],
)
def test_a_first_step_that_cannot_be_compiled_is_done_eagerly(monkeypatch, broken, settings):
    """Running statistics, which the failed attempt may have moved, are put back."""
    monkeypatch.setattr(torch, "compile", broken)
    plain, step = make_step(**settings), make_step(**settings, compiled=True)
    with pytest.warns(UserWarning, match=r"step is eager, torch\.compile fails here: .*no such he"):
        ours = [step(make_batch(number), 0.03).clone() for number in range(2)]
    theirs = [plain(make_batch(number), 0.03).clone() for number in range(2)]
    assert torch.equal(torch.stack(ours), torch.stack(theirs))
    assert differing(step, plain) == []
    assert not step.compiled


def test_what_must_be_compiled_is_an_error_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(torch, "compile", fails_at_once)
    step = make_step(compiled=True, compile_required=True)
    before = {name: value.clone() for name, value in tensors_of(step).items()}
    with pytest.raises(UsageError, match=r"fails here: no such header; set train\.compile=auto"):
        step(make_batch(0), 0.03)
    assert all(torch.equal(value, before[name]) for name, value in tensors_of(step).items())


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory")])
def test_out_of_memory_is_not_the_compilers_fault(monkeypatch, error):
    def call(*_):
        raise error

    monkeypatch.setattr(torch, "compile", lambda *_, **__: call)
    with pytest.raises(type(error)):
        make_step(compiled=True)(make_batch(0), 0.03)


def test_an_error_of_a_later_step_is_raised(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    step = make_step(compiled=True)
    step(make_batch(0), 0.03)
    monkeypatch.setattr(step, "_forward", fails_at_once(step._plain_forward))
    with pytest.raises(LookupError):
        step(make_batch(1), 0.03)
    assert step.compiled


def broken_on_rank_1(ranks):
    """A probe that fails on rank 1; then a second function that does not compile there."""
    kept_checks.kept_folder = lambda: None
    compilation.compile_failure = lambda _: "no g++" * ranks.rank
    _, header = resolve_compile(Compile.auto, CPU, ranks)
    with pytest.raises(UsageError) as refused:
        resolve_compile(Compile.always, CPU, ranks)
    graphs = []

    def lookup(name):
        assert name == "inductor"
        graphs.append(name)
        if ranks.rank and len(graphs) == 2:
            raise SyntaxError("bad header\nmore")
        return lambda graph, _: graph.forward

    compilation.lookup_backend = lookup
    compiler = compilation.Compiler(ranks)
    first, second = (compiler(lambda x, f=f: gather_rows(x * f, ranks)) for f in (2, 3))
    rows, sent = torch.full((1,), float(ranks.rank)), []
    gathered = first(rows).tolist()
    try:
        sent.append(second(rows))
    except Exception as error:
        reason = compiler.explain(error)
    return [header, str(refused.value), gathered, reason, sent, len(graphs)]


@pytest.mark.full
def test_two_ranks_are_eager_if_one_cannot_compile():
    """Rank 0, whose compiler works, has sent nothing that rank 1 would wait for."""
    first, second = run_ranks(broken_on_rank_1)
    assert first == second
    header, refused, gathered, reason, sent, graphs = first
    assert "eager, torch.compile fails on rank 1 (no g++); a C++ compiler" in header
    assert re.match(r"torch\.compile fails on rank 1: no g\+\+; set", refused)
    assert (gathered, sent, graphs) == ([0.0, 2.0], [], 2)
    assert reason == "on rank 1: bad header"


def test_a_rank_learns_that_another_one_cannot_compile(monkeypatch):
    """The same without processes: two threads, whose store is in memory."""
    store, rank = HashStore(), threading.local()
    monkeypatch.setattr(compilation, "own_store", lambda name, _: PrefixStore(name, store))

    def lookup(_):
        def compile(graph, _):
            if graph == "second" and rank.number:
                raise SyntaxError("bad header\nmore")
            return graph

        return compile

    def one_rank(number):
        rank.number, compiler = number, compilation.Compiler(Ranks(number, 2))
        compiled = compiler._backend("first", [])
        with pytest.raises(RuntimeError, match="fails on rank 1: bad header"):
            compiler._backend("second", [])
        reason = compiler.explain(RuntimeError())
        compiler.settled = True  # a later graph is of one rank alone
        return compiled, reason, compiler._backend("third", []), compiler.explain(RuntimeError())

    monkeypatch.setattr(compilation, "lookup_backend", lookup)
    names = iter([0, 0, 1, 1])
    monkeypatch.setattr(compilation, "_GRAPHS", names)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(one_rank, range(2)))
    assert found == [("first", "on rank 1: bad header", "third", "")] * 2


def test_a_rank_learns_that_dynamo_failed_on_another_one(monkeypatch):
    """Which then never reaches its backend, where the first waits."""
    store = HashStore()
    monkeypatch.setattr(compilation, "own_store", lambda name, _: PrefixStore(name, store))
    monkeypatch.setattr(compilation, "lookup_backend", lambda _: lambda graph, _: graph)
    monkeypatch.setattr(compilation, "_GRAPHS", iter([0, 0]))

    def one_rank(number):
        compiler = compilation.Compiler(Ranks(number, 2))
        error = compilation.TorchDynamoException("no such bytecode\nmore")
        if not number:
            with pytest.raises(RuntimeError, match="fails on rank 1: no such bytecode") as caught:
                compiler._backend("first", [])
            error = caught.value
        return compiler.explain(error)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(one_rank, range(2))) == ["on rank 1: no such bytecode"] * 2


def test_a_trace_that_torch_begins_again_is_no_failure(monkeypatch):
    """All ranks begin again alike, so nothing is exchanged: there is no store here."""

    def lookup(_):
        def compile(*_):
            raise RestartAnalysis(restart_reason="a float became a constant")

        return compile

    monkeypatch.setattr(compilation, "lookup_backend", lookup)
    compiler = compilation.Compiler(Ranks(0, 2))
    with pytest.raises(RestartAnalysis):
        compiler._backend("first", [])


def test_the_probe_is_agreed_on_by_all_ranks(monkeypatch):
    monkeypatch.setattr(compilation, "of_all", lambda own, _: [own, "no g++"])
    monkeypatch.setattr(compilation, "compile_failure", lambda _: "")
    works, header = resolve_compile(Compile.auto, CPU, Ranks(0, 2))
    assert not works
    assert "eager, torch.compile fails on rank 1 (no g++); a C++ compiler" in header
    with pytest.raises(UsageError, match=r"fails on rank 1: no g\+\+; set train\.compile=auto"):
        resolve_compile(Compile.always, CPU, Ranks(0, 2))
