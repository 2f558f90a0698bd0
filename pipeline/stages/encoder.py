"""encoder: what an autoencoder's files on this disk are now, in data/encoder.json; runs where there are any.

It is to `data.encoder` what stage `public` is to `teacher.path`. Nothing heavy is imported here.
"""

from ifm.latents import inputs
from pipeline.runner import paths, plain
from pipeline.stages.public import bring_up_to_date


def main() -> None:
    """Notes what the files are; where they are not on this machine, what was noted before stands."""
    section = plain.section(paths.PARAMS, "data", keys={"encoder"})
    if section is not None:  # else `fetch` says what is wrong
        bring_up_to_date("encoder", section, "data.encoder", look=inputs.look, note=inputs.note)


if __name__ == "__main__":
    main()
