"""`everput rotate-sealing-key`: encrypt the secrets in the log with a new key.

For: the order of the steps: after a crash between any two of them, every secret can still be decrypted, and the command
can be repeated. Not for: encrypting (broker/sealing.py), what the events change (broker/core/directory.py).
"""

from __future__ import annotations

import os

import click

from broker.clock import now_ms
from broker.core.events import ListenerResealed
from broker.errors import ConfigurationError
from broker.kafka.embedded.kafka import EmbeddedKafka
from broker.kafka.importing import refuse_unfinished
from broker.private_files import write_secret
from broker.sealing import Sealer, new_sealing_key
from broker.settings import KafkaSettings
from cli import files
from cli.directory import directory, run_quietly
from cli.groups import examples
from cli.options import Options, shared_options
from cli.printing import say
from projections.app import CATCH_UP_S


@click.command("rotate-sealing-key", epilog=examples("everput rotate-sealing-key --data-dir data"))
@shared_options
def command(options: Options) -> None:
    """Encrypt the signing secrets and headers of all listeners with a new sealing key. If the command is interrupted,
    repeat it.

    With the embedded Kafka, stop `everput serve` first. The command creates the new key. At the end, DIR/sealing-key
    holds only the new key.

    With --kafka, make a new key NEW: 32 random bytes in url-safe base64. OLD is the present key. Set the sealing key of
    all processes to NEW,OLD, and restart them. Run this command, also with NEW,OLD. Then set the key of all processes
    to NEW, and restart them again.
    """
    if options.kafka is None:
        count = _embedded(options)
    else:
        sealer = Sealer(files.sealing_key(options.data_dir))
        if sealer.keys == 1:
            raise ConfigurationError(
                f"there is only one sealing key: set {files.SEALING_KEY_VARIABLE}=NEW,OLD for this command and for "
                "all processes, restart the processes, then repeat this command"
            )
        count = run_quietly("rotate", options, reseal(options.kafka_settings(), sealer))
    say(f"encrypted the secrets of {count} listeners with the new key")


def _embedded(options: Options) -> int:
    """Replace the sealing key of a server with an embedded Kafka. Return how many listeners had secrets that were
    encrypted again.

    Until all secrets are encrypted with the new key, the key file holds both keys. After that, it holds only the new
    key.
    """
    path = files.sealing_key_file(options.data_dir)
    for variable in (files.SEALING_KEY_VARIABLE, f"{files.SEALING_KEY_VARIABLE}_FILE"):
        if variable in os.environ:
            raise ConfigurationError(
                f"without --kafka, this command replaces the sealing key in the file {path}, which Everput ignores "
                f"while {variable} is set: put the present key into this file, unset the variable here and for "
                "`everput serve`, and repeat this command"
            )
    with files.lock(options.data_dir):
        sealing_keys = files.sealing_key(options.data_dir)
        if Sealer(sealing_keys).keys == 1:
            sealing_keys = f"{new_sealing_key()},{sealing_keys}"
            write_secret(path, sealing_keys)
        count = run_quietly("rotate", options, _reseal_embedded(options, Sealer(sealing_keys)))
        write_secret(path, sealing_keys.partition(",")[0])
    return count


async def _reseal_embedded(options: Options, sealer: Sealer) -> int:
    kafka = EmbeddedKafka(options.data_dir / "kafka")
    await kafka.start()
    try:
        return await reseal(options.kafka_settings(kafka.access), sealer)
    finally:
        await kafka.stop()


async def reseal(settings: KafkaSettings, sealer: Sealer) -> int:
    """Encrypt the listeners' secrets with the first sealing key if they are encrypted with another one. Return the
    number of changed listeners.

    Raises ConfigurationError if no given key can decrypt a secret, or if the installation is an unfinished import. Also
    raises ConfigurationError if, at the end, some secrets are still encrypted with an old key: running processes use
    the old key. Raises Unavailable if Kafka does not answer.
    """
    await refuse_unfinished(settings)
    count = 0
    async with directory(settings) as (control, view):
        for listener in list(view.state.listeners.values()):
            sealed = sealer.reseal(listener.sealed())
            if sealed:
                event = ListenerResealed(
                    at_ms=now_ms(),
                    organization_id=listener.organization_id,
                    actor="shell",
                    listener_id=listener.id,
                    sealed=sealed,
                )
                await control.append(event)
                count += 1
        await view.caught_up(timeout_s=CATCH_UP_S)
        left = sum(1 for listener in view.state.listeners.values() if sealer.reseal(listener.sealed()))
    if left:
        raise ConfigurationError(
            f"{left} listeners still have secrets that are encrypted with an old key, because some processes still "
            f"encrypt with it. Set {files.SEALING_KEY_VARIABLE}=NEW,OLD for all processes, restart them, and repeat "
            "this command"
        )
    return count
