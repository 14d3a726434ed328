"""All settings are in pyproject.toml; this only lets editable installs carry its data files too."""

import setuptools


class Distribution(setuptools.Distribution):
    """Answers ``has_data``, which setuptools' editable_wheel asks before it installs data files but never defines."""

    def has_data(self) -> bool:
        return bool(self.data_files)


setuptools.setup(distclass=Distribution)
