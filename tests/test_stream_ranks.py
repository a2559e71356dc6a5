import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import streams
from streams import SETTINGS, digest, logged, real

HERE = Path(streams.__file__)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, tiny_model):
    """Return what each of the two ranks of a job has seen, that torchrun has started."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*command, HERE, "rank", folder, tiny_model], check=True, timeout=500)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_ranks_of_two_workers_make_every_clip_once_and_equally_many(ranks):
    # The twelfth clip of eleven is the first one again, so that no rank waits for the other.
    assert [rank["finite"] for rank in ranks] == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 0]]
    assert [rank["length"] for rank in ranks] == [6, 6]
    unknown = [rank["unknown batch size"] for rank in ranks]
    assert sorted(unknown[0] + unknown[1]) == [0, *range(11)]


def test_spawned_workers_know_the_rank_of_their_process(ranks):
    assert [rank["spawned"] for rank in ranks] == [rank["finite"] for rank in ranks]


def test_an_endless_stream_over_ranks_never_repeats_also_when_resumed(ranks):
    first = [rank["endless"] for rank in ranks]
    assert sorted(first[0] + first[1]) == list(range(16))
    assert ranks[0]["state"] == ranks[1]["state"] == {"epoch": 0, "seed": 0, "start": 16}
    rest = [rank["endless, resumed"] for rank in ranks]
    assert sorted(rest[0] + rest[1]) == list(range(16, 28))


def test_ranks_resume_in_step(ranks):
    assert [rank["finite, resumed"] for rank in ranks] == [[4, 6, 8, 10], [5, 7, 9, 0]]


def test_a_given_shard_wins_over_the_process_group(ranks):
    assert [rank["given"] for rank in ranks] == [[0, 1, 2, 3]] * 2


def test_clips_of_ranks_and_workers_are_byte_for_byte_those_of_one_process(ranks, tiny_model):
    alone = {}
    for settings in SETTINGS:
        videos = real(tiny_model, **settings)
        videos.set_epoch(2)
        for index in (2, 0, 3, 1):
            alone[f"{settings} {index}"] = digest(videos.clip(index))
    assert ranks[0]["real"].keys().isdisjoint(ranks[1]["real"])
    assert ranks[0]["real"] | ranks[1]["real"] == alone


@pytest.mark.parametrize(("before", "after"), [(2, 3), (0, 2)])
def test_a_killed_loop_resumes_with_exactly_the_clips_that_were_missing(before, after, tmp_path):
    length, batch_size, epoch = 61, 4, 5
    command = [sys.executable, HERE, "loop", tmp_path]
    arguments = list(map(str, (batch_size, length, epoch)))
    with subprocess.Popen(
        [*command, str(before), *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as killed:  # fmt: skip
        for step in range(1, 5):
            assert killed.stdout.readline() == f"{step}\n"
            if step < 4:
                print(file=killed.stdin, flush=True)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert killed.returncode == -signal.SIGKILL
    checkpoint = tmp_path / "checkpoint.json"
    assert json.loads(checkpoint.read_text())["seen"] == list(range(16))
    subprocess.run(
        [*command, str(after), *arguments], stdin=subprocess.DEVNULL, check=True, timeout=500
    )
    said = json.loads(checkpoint.read_text())
    assert said["seen"] == list(range(length))
    assert said["videos"] == {"epoch": epoch, "seed": 0, "start": length}
    assert logged(tmp_path / f"{after}.txt") == list(range(16, length))
