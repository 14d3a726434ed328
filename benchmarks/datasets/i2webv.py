"""I2WebV: from ImageNet (1,000 classes) to WebVision's validation pictures (the same and 4,000 more); one transfer.

The large benchmark of unsupervised open domain recognition (Zhuo et al., CVPR 2019), which SRE-CLIP uses for DAZSL. The
classes are those of WebVision 2.0's own list ``info/synsets.txt``, one WordNet id and its synonyms a line; the first
1,000 are ImageNet's (ILSVRC 2012). Nothing of the list ships with this package.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import pandas as pd

from benchmarks.datasets.base import ClosedSet, DatasetCard, DatasetError
from benchmarks.datasets.folders import (
    FolderDataset,
    Listing,
    Place,
    check_root,
    class_splits,
    join_listings,
    list_files,
    read_image_list,
    scan,
)
from benchmarks.datasets.i2awa import require_pictures
from benchmarks.datasets.transfers import plain_keys, with_splits
from benchmarks.datasets.wnids import synset_of

#: c of SRE-CLIP's balance term on this set (docs/methods.md, SRE-CLIP): ``--set sre_clip.unseen_share=0.82``.
UNSEEN_SHARE = 0.82

WEBVISION = ("webvision", "webvision2018", "webvision2", "WebVision")
PICTURES = ("val_images_resized", "val_images_256", "val_images")


class I2WebV(FolderDataset):
    """ImageNet's training folders beside WebVision 2.0's lists and validation pictures."""

    card = DatasetCard(
        name="i2webv",
        title="I2WebV: ImageNet to WebVision, 1,000 seen and 5,000 classes in all",
        version="v1",
        source="ImageNet (ILSVRC 2012 training set): https://image-net.org; WebVision 2.0 (2018), info and validation "
        "pictures: https://data.vision.ee.ethz.ch/cvl/webvision/dataset2018.html",
        licence="non-commercial research and education, as both pages state",
        gallery_domain="webvision",
        bibtex="""@inproceedings{zhuo2019unsupervised,
  title={Unsupervised Open Domain Recognition by Semantic Discrepancy Minimization},
  author={Zhuo, Junbao and Wang, Shuhui and Cui, Shuhao and Huang, Qingming},
  booktitle={Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  pages={750--759},
  year={2019}
}
@article{li2017webvision,
  title={WebVision Database: Visual Learning and Understanding from Web Data},
  author={Li, Wen and Wang, Limin and Li, Wei and Agustsson, Eirikur and Van Gool, Luc},
  journal={arXiv preprint arXiv:1708.02862},
  year={2017}
}""",
        known_problems=(
            "class names are not published: a class is called by its first synonym, and by its hypernym too where "
            "several classes share that",
            "every class of the source is seen, so validation cannot hold classes back: it is the accuracy on a tenth "
            "of the source pictures",
            "the unlabelled target pictures are the test pictures, as the paper does",
            "published for DAZSL: the class split of the retrieval protocols is our seeded rule over the seen classes",
        ),
        layout="ROOT/imagenet/train/WNID/* and ROOT/webvision/{info/synsets.txt,info/val_filelist.txt,"
        "val_images_resized/*}",
    )
    places = (
        Place(
            "imagenet",
            ("imagenet/train", "ILSVRC2012/train", "ILSVRC/Data/CLS-LOC/train", "ILSVRC2012_img_train", "imagenet"),
        ),
    )
    also_named = ("I2WebV",)
    #: Seen classes and classes in all.
    sizes: ClassVar[tuple[int, int]] = (1000, 5000)

    @cached_property
    def wnids(self) -> Mapping[str, str]:
        """WordNet id of every class by name, in the order of WebVision's list: the seen ones come first."""
        with self._named():
            file = self._info("synsets.txt")
            ids = self._read_list(file)
            try:
                names = class_names(ids)
            except DatasetError as error:
                raise DatasetError(f"{file}: {error}; fetch it again") from error
        return dict(zip(names, ids, strict=True))

    def read(self, root: Path) -> Listing:
        """ImageNet's tree, and the validation pictures that WebVision's list names."""
        check_root(root)
        wnids = list(self.wnids.values())
        source = scan(root, self.places)
        file = self._info("val_filelist.txt")
        listed = read_image_list(file)
        beyond = listed[listed["label"] >= len(wnids)]
        if len(beyond):
            raise DatasetError(
                f"{file}: label {beyond['label'].iloc[0]} is beyond the {len(wnids)} classes of synsets.txt"
            )
        folder = self._webvision()
        pictures = next((name for name in PICTURES if (root / folder / name).is_dir()), None)
        if pictures is None:
            raise DatasetError(
                f"{root / folder} has no folder {' or '.join(PICTURES)}; the layout is {self.card.layout}"
            )
        paths = f"{folder}/{pictures}/" + listed["path"]
        target = list_files(root, paths, domain="webvision", classes=[wnids[label] for label in listed["label"]])
        return plain_keys(join_listings([source, target]))

    def arrange(self, pictures: pd.DataFrame) -> pd.DataFrame:
        """Classes by WordNet id; the unseen ones are test classes."""
        name_of = {wnid: name for name, wnid in self.wnids.items()}
        names = pictures["class"].map(name_of)
        seen = set(self.closed_set.seen)
        source = pictures["domain"].eq("imagenet")
        stray = names.isna() | (source & ~names.isin(seen))
        for folder in sorted(pictures.loc[stray, "class"].unique()):
            self.note("unknown", folder, "not one of the seen classes of synsets.txt; its pictures are left out")
        found = pictures.assign(**{"class": names})[~stray].reset_index(drop=True)
        require_pictures(found, dict.fromkeys(self.closed_set.seen, ""), "imagenet", self.folder)
        require_pictures(found, self.wnids, "webvision", self.folder)
        splits = {**class_splits(self.closed_set.seen), **dict.fromkeys(self.closed_set.unseen, "test")}
        return with_splits(found, splits, self.card.gallery_domain)

    @cached_property
    def closed_set(self) -> ClosedSet:
        """DAZSL from ImageNet to WebVision."""
        names = tuple(self.wnids)
        return ClosedSet(
            dazsl_pairs=(("imagenet", "webvision"),), seen=names[: self.sizes[0]], unseen=names[self.sizes[0] :]
        )

    @cached_property
    def synsets(self) -> Mapping[str, str]:
        """WordNet synset name of every class."""
        return {name: synset_of(wnid).name() for name, wnid in self.wnids.items()}

    def _webvision(self) -> str:
        return next((name for name in WEBVISION if (self.folder / name).is_dir()), WEBVISION[0])

    def _info(self, name: str) -> Path:
        """A list of WebVision's ``info`` folder, or beside it."""
        folder = self.folder / self._webvision()
        found = next((file for file in (folder / "info" / name, folder / name) if file.is_file()), None)
        if found is None:
            raise DatasetError(
                f"{folder / 'info' / name} does not exist: the classes are those of WebVision 2.0's own lists, which"
                f" are not shipped; fetch its info archive. The layout is {self.card.layout}"
            )
        return found

    def _read_list(self, file: Path) -> list[str]:
        try:
            lines = [line.split() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise DatasetError(f"{file} is not UTF-8 text: byte {error.start} is wrong; fetch it again") from error
        ids = [words[0] for words in lines]
        seen, everything = self.sizes
        if len(ids) != everything:
            only_seen = len(ids) == seen
            hint = " (WebVision 1.0 has the seen classes alone; 2.0 is needed)" if only_seen else "; fetch it again"
            raise DatasetError(f"{file} lists {len(ids)} classes, not {everything}{hint}")
        twice = [wnid for wnid, count in Counter(ids).items() if count > 1]
        if twice:
            raise DatasetError(f"{file} lists {twice[0]} twice; fetch it again")
        return ids


def class_names(wnids: list[str]) -> list[str]:
    """A name for every WordNet id, in order: its first synonym; ``crane (wading bird)`` where several share that.

    The word in brackets is the first hypernym's first synonym; what is still not unique gets its id instead. Raises
    :class:`DatasetError` for an id that WordNet lacks.
    """
    synsets = [synset_of(wnid) for wnid in wnids]
    names = [synset.lemma_names()[0].replace("_", " ") for synset in synsets]
    several = Counter(name.lower() for name in names)
    for place, synset in enumerate(synsets):
        above = [*synset.hypernyms(), *synset.instance_hypernyms()]
        if several[names[place].lower()] > 1 and above:
            names[place] = f"{names[place]} ({above[0].lemma_names()[0].replace('_', ' ')})"
    several = Counter(name.lower() for name in names)
    return [f"{name} ({wnid})" if several[name.lower()] > 1 else name for name, wnid in zip(names, wnids, strict=True)]
