"""Prepare the data of a training command: packed files in place of raw data, on every rank."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from mindspeed_llm.arguments.data_arguments import DataArguments, parse_data_path
from mindspeed_llm.arguments.missing_paths import missing_raw_data
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.raw_data_arguments import names_raw_data
from mindspeed_llm.arguments.raw_data_rules import preprocessing_command
from mindspeed_llm.errors import ConfigError, DataError, UserError
from mindspeed_llm.lease import HeldLeases, LeaseHeldError
from mindspeed_llm.manifest import document_manifest_path, has_document_files, has_packed_files, manifest_path
from mindspeed_llm.prepare_data.cached_sets import CachedSet, cache_root, cached_set
from mindspeed_llm.prepare_data.preprocess_process import own_flags, preprocess_in_process

if TYPE_CHECKING:
    from mindspeed_llm.devices.startup_work import StartupWork, WorkTiming

logger = logging.getLogger(__name__)

FIELDS = ("data_path", "train_data_path", "valid_data_path", "test_data_path")  # of DataArguments
# A shared file system may show new files to another machine some seconds later.
LOOKS = 4
SECONDS_BETWEEN_LOOKS = 5.0
SECONDS_BETWEEN_LEASES = 50  # between two attempts to take the lease of another run

Paths = dict[str, list[str]]  # field of DataArguments → its values


def prepare_data(arguments: PretrainArguments, timing: WorkTiming | None = None) -> PretrainArguments:
    """Make or find the packed files of all raw data that a command names. Every rank of the job calls this.

    Rank 0 does it for the job, or the first rank of each machine with --no-shared-storage. The other ranks wait.

    Args:
        arguments: checked arguments.
        timing: intervals and limits of the wait; None for the usual ones.

    Returns:
        The arguments with prefixes of packed files, as if the command had named them.

    Raises:
        UserError: raw data cannot be preprocessed; nothing was written. On every rank, with the machine and the reason.
    """
    # Late, because these modules import torch, which a dry run without raw data and --help do not need.
    from mindspeed_llm.devices.rendezvous import (
        RankInfo,
        current_rank,
        exchange_rank_info,
        rendezvous_timeout,
        report_startup_errors,
    )
    from mindspeed_llm.devices.startup_work import TIMING, StartupWork

    minutes = arguments.parallel.distributed_timeout_minutes
    own, patience = RankInfo(current_rank(), socket.gethostname()), rendezvous_timeout(minutes)
    exchange_rank_info(own, patience)  # an error of one rank ends the job now, and not after hours of work
    work = StartupWork(arguments.data.no_shared_storage, timing or TIMING)
    with report_startup_errors(minutes):
        if work.works_here:
            _work(arguments, work)
        result = work.wait()
    exchange_rank_info(own, patience)
    assert result is not None, "a rank without a result has reported an error"
    paths: Paths = json.loads(result)
    with report_startup_errors(minutes):
        _check_visible(arguments.data, paths)
    return dataclasses.replace(arguments, data=_with_paths(arguments.data, paths))


def find_prepared_data(arguments: PretrainArguments) -> PretrainArguments:
    """Return the arguments with prefixes of packed files in place of raw data that an earlier start has preprocessed.

    For a dry run, which writes nothing. Raw data that are not preprocessed yet, or do not exist here, stay as they are.

    Args:
        arguments: checked arguments.
    """
    prefixes = {}
    for name in filter(names_raw_data, _names(arguments.data)):
        with contextlib.suppress(UserError):
            found = _cached_set_of(arguments, name)
            if found.is_complete:
                prefixes[name] = str(found.data_path)
    data = _with_paths(arguments.data, _replaced(arguments.data, prefixes))
    return dataclasses.replace(arguments, data=data)


def _work(arguments: PretrainArguments, work: StartupWork) -> None:
    """Make or find the packed files, and report the result or the failure to the ranks that wait."""
    from mindspeed_llm.devices.startup_work import WorkCancelledError

    result = None
    try:
        prefixes = _make_packed_files(arguments, work.report)
        result = json.dumps(_replaced(arguments.data, prefixes))
    except WorkCancelledError:
        logger.info("preprocessing has ended, because another rank has failed")
    finally:
        work.finish(result)


def _make_packed_files(arguments: PretrainArguments, report: Callable[[str], None]) -> dict[str, str]:
    """Return the prefix of packed files for each raw data path, after making those that are not in the cache."""
    names = _names(arguments.data)
    raw = [name for name in names if names_raw_data(name)]
    is_packed = arguments.data.is_instruction_dataset
    exists = has_packed_files if is_packed else has_document_files
    packed = [name for name in names if name not in raw and exists(name)]
    missing = [name for name in names if name not in raw and name not in packed]
    problems = [missing_raw_data(names[name], name, is_packed) or "" for name in missing]
    if raw and packed:
        problems.append(
            f"{names[raw[0]]}: {', '.join(raw)} is raw data, but {', '.join(packed)} names packed files; give only raw "
            "data, or preprocess them with preprocess_data.py and give only prefixes"
        )
    sets = {}
    for name in raw:
        try:
            sets[name] = _cached_set_of(arguments, name)
        except UserError as error:  # noqa: PERF203 - report all of them together
            problems.append(own_flags(str(error), names[name]))
    if problems:
        raise ConfigError(problems)
    if packed:
        logger.info("notice: the flags of raw data have no effect: the data paths name packed files")
    for name, found in sets.items():
        if found.is_complete:
            logger.info(f"{name}: using its packed files in the cache, {found.prefix}")
        else:
            _make(name, names[name], found, report)
    return {name: str(found.data_path) for name, found in sets.items()}


def _make(name: str, flag: str, found: CachedSet, report: Callable[[str], None]) -> None:
    """Preprocess one raw data path, unless another run does it meanwhile."""
    with _only_writer(found, report) as leases:
        if found.is_complete:
            logger.info(f"{name}: using the packed files that another run has made, {found.prefix}")
            return

        def report_and_check(progress: str) -> None:
            leases.check()
            report(progress)

        logger.info(f"{name}: preprocessing it into {found.prefix}")
        preprocess_in_process(found.command, report_and_check, flag)


@contextlib.contextmanager
def _only_writer(found: CachedSet, report: Callable[[str], None]) -> Iterator[HeldLeases]:
    """Hold the lease of the folder of packed files, after waiting for a run that holds it."""
    while True:
        with HeldLeases() as leases:
            try:
                leases.take({"--data-cache-path": found.prefix.parent})
            except LeaseHeldError as error:
                held = str(error)
            else:
                yield leases
                return
        logger.info(f"waiting until another run has preprocessed the same data: {held}")
        for _ in range(SECONDS_BETWEEN_LEASES):
            report("waiting for another run that preprocesses the same data")
            time.sleep(1)
            if found.manifest.exists():
                break


def _cached_set_of(arguments: PretrainArguments, name: str) -> CachedSet:
    root = cache_root(arguments.raw_data.data_cache_path, arguments.checkpoint.save, arguments.data.no_shared_storage)
    return cached_set(preprocessing_command(arguments, name, "packed"), root)


def _names(data: DataArguments) -> dict[str, str]:
    """Return each data path of a command, without weights, and its flag."""
    return {
        name: f"--{field.replace('_', '-')}" for field in FIELDS for name in parse_data_path(getattr(data, field))[1]
    }


def _replaced(data: DataArguments, prefixes: dict[str, str]) -> Paths:
    """Return the values of all data paths with prefixes in place of raw data."""
    replaced = {}
    for field in FIELDS:
        values = getattr(data, field)
        weights, names = parse_data_path(values)
        own = [prefixes.get(name, name) for name in names]
        if weights is not None:  # the texts of the weights stay as they are
            own = [value for pair in zip(values[::2], own, strict=True) for value in pair]
        replaced[field] = own
    return replaced


def _with_paths(data: DataArguments, paths: Paths) -> DataArguments:
    values: dict[str, Any] = dict(paths)
    return dataclasses.replace(data, **values)


def _check_visible(data: DataArguments, paths: Paths) -> None:
    """Check that this rank sees the packed files that another one has made."""
    before, manifest_of = _names(data), manifest_path if data.is_instruction_dataset else document_manifest_path
    made = [name for name in _names(_with_paths(data, paths)) if name not in before]
    for look in range(LOOKS):
        hidden = [path for path in made if not manifest_of(path).exists()]
        if not hidden:
            return
        if look < LOOKS - 1:
            time.sleep(SECONDS_BETWEEN_LOOKS)
    raise DataError(
        f"{', '.join(hidden)}: the packed files that rank 0 has made of the raw data are not visible here; give "
        "--data-cache-path DIR on storage that all machines share, or --no-shared-storage if each has the raw data"
    )
