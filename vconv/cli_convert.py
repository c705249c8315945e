"""The commands that speak, mounted by ``cli``: ``convert``, ``encode`` and ``decode``."""

from __future__ import annotations

from typing import Annotated

import typer

from .cli_shared import ModelOption, interruption, report_error

InputsArgument = Annotated[
    list[str], typer.Argument(metavar="INPUT", help="Recordings, folders, or - for stdin.")
]
SpeakerOption = Annotated[
    str,
    typer.Option("-s", "--speaker", help="Name, index, index:N, or a mixture a:0.7,b:0.3."),
]
RecordingOption = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output",
        help="A file for one input, a folder for several, - for stdout; by default "
        "<stem>.<speaker>.wav beside the input.",
    ),
]
DeviceOption = Annotated[str, typer.Option("-d", "--device", help="auto, cpu or cuda[:N].")]
EngineOption = Annotated[str, typer.Option(help="auto, native, torchscript, cudagraphs or triton.")]
PrecisionOption = Annotated[
    str, typer.Option(help="auto, fp32, bf16 or int8: how the native engine keeps weights.")
]
SeedOption = Annotated[int, typer.Option(help="Same seed, same bytes.")]
TemperatureOption = Annotated[
    float, typer.Option(help="Of the draws: 1 as trained, 0 the likeliest.")
]
PitchOption = Annotated[
    float,
    typer.Option(
        metavar="SEMITONES", help="Speak higher, or lower; of a model trained with pitch."
    ),
]
RecursiveOption = Annotated[bool, typer.Option("-r", "--recursive", help="Look into sub-folders.")]
FormatOption = Annotated[str | None, typer.Option("-f", "--format", help="wav, flac, ogg or mp3.")]
RateOption = Annotated[
    int | None, typer.Option(help="The output's rate in Hz; by default the model's.")
]
ChannelOption = Annotated[
    int | None, typer.Option(help="Take this channel (from 0); by default the mean.")
]
TruncatedOption = Annotated[
    bool, typer.Option("--allow-truncated", help="Take what is there of a cut file.")
]
MaxDurationOption = Annotated[
    float | None, typer.Option(help="Refuse recordings longer than so many seconds.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
SkipOption = Annotated[bool, typer.Option("--skip-existing", help="Pass over outputs that exist.")]
RowsOption = Annotated[bool, typer.Option("--json", help="Print one JSON object a file on stdout.")]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Only errors and warnings.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")]


def convert(
    inputs: InputsArgument,
    speaker: SpeakerOption,
    output: RecordingOption = None,
    model: ModelOption = "demo",
    device: DeviceOption = "auto",
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    seed: SeedOption = 0,
    temperature: TemperatureOption = 1.0,
    pitch: PitchOption = 0.0,
    lanes: Annotated[
        str,
        typer.Option(help="auto or a number: pieces of a recording that are generated together."),
    ] = "auto",
    jobs: Annotated[
        str, typer.Option("-j", "--jobs", help="auto or a number: files at a time.")
    ] = "auto",
    record: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Note each file in JSON lines there, and go on by them."),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Convert only part I of N of the inputs.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="[=ADDRESS]", help="On a Ray cluster: one that is running, or here."),
    ] = None,
    recursive: RecursiveOption = False,
    format_name: FormatOption = None,
    sample_rate: RateOption = None,
    level: Annotated[
        str, typer.Option(help="keep, match (the input's loudness) or peak (-1 dB).")
    ] = "keep",
    channel: ChannelOption = None,
    allow_truncated: TruncatedOption = False,
    max_duration: MaxDurationOption = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Bare 16-bit mono samples at --sample-rate, stdin to stdout."),
    ] = False,
    overwrite: OverwriteOption = False,
    skip_existing: SkipOption = False,
    as_json: RowsOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Say recordings in a speaker's voice."""
    from .convert_command import Options, convert_all

    return convert_all(
        inputs,
        output,
        Options(
            model=model,
            device=device,
            engine=engine,
            precision=precision,
            speaker=speaker,
            seed=seed,
            temperature=temperature,
            pitch=pitch,
            lanes=lanes,
            level=level,
            format_name=format_name,
            sample_rate=sample_rate,
            channel=channel,
            allow_truncated=allow_truncated,
            max_duration=max_duration,
            recursive=recursive,
            overwrite=overwrite,
            skip_existing=skip_existing,
            as_json=as_json,
            raw=raw,
            quiet=quiet,
            verbose=verbose,
            jobs=jobs,
            record=record,
            shard=shard,
            ray=ray,
        ),
        report_error,
        interruption,
    )


def encode(
    inputs: InputsArgument,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help="A file for one input, a folder for several, - for stdout; by default "
            "<stem>.units beside the input.",
        ),
    ] = None,
    model: ModelOption = "demo",
    device: DeviceOption = "auto",
    recursive: RecursiveOption = False,
    channel: ChannelOption = None,
    allow_truncated: TruncatedOption = False,
    max_duration: MaxDurationOption = None,
    overwrite: OverwriteOption = False,
    skip_existing: SkipOption = False,
    as_json: RowsOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Write what recordings say, without who says it, as files of units."""
    from .job_files import Handling
    from .units_command import Encoding, encode_all

    return encode_all(
        inputs,
        output,
        Encoding(
            model=model,
            device=device,
            channel=channel,
            allow_truncated=allow_truncated,
            max_duration=max_duration,
            recursive=recursive,
            handling=Handling(overwrite, skip_existing, as_json, quiet, verbose),
        ),
        report_error,
        interruption,
    )


def decode(
    inputs: Annotated[
        list[str], typer.Argument(metavar="UNITS", help=".units files, folders, or - for stdin.")
    ],
    speaker: SpeakerOption,
    output: RecordingOption = None,
    model: ModelOption = "demo",
    device: DeviceOption = "auto",
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    seed: SeedOption = 0,
    temperature: TemperatureOption = 1.0,
    pitch: PitchOption = 0.0,
    recursive: RecursiveOption = False,
    format_name: FormatOption = None,
    sample_rate: RateOption = None,
    level: Annotated[str, typer.Option(help="keep or peak (-1 dB).")] = "keep",
    overwrite: OverwriteOption = False,
    skip_existing: SkipOption = False,
    as_json: RowsOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Say files of units in a speaker's voice."""
    from .job_files import Handling
    from .units_command import Decoding, decode_all

    return decode_all(
        inputs,
        output,
        Decoding(
            model=model,
            device=device,
            engine=engine,
            precision=precision,
            speaker=speaker,
            seed=seed,
            temperature=temperature,
            pitch=pitch,
            level=level,
            format_name=format_name,
            sample_rate=sample_rate,
            recursive=recursive,
            handling=Handling(overwrite, skip_existing, as_json, quiet, verbose),
        ),
        report_error,
        interruption,
    )
