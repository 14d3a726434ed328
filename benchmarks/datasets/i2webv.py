"""I2WebV: from ImageNet (1,000 classes) to WebVision's validation images (the same and 4,000 more); one transfer.

The large benchmark of unsupervised open domain recognition (Zhuo et al., CVPR 2019), which SRE-CLIP uses for DAZSL. The
classes are those of WebVision 2.0's own list ``info/synsets.txt``, one WordNet id and its synonyms a line; the first
1,000 are ImageNet's (ILSVRC 2012). Nothing of the list ships with this package.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from benchmarks.datasets.base import ClosedSet, DatasetCard, DatasetError
from benchmarks.datasets.folder_dataset import FolderDataset, require_images
from benchmarks.datasets.image_lists import display_path, prefix_notes, read_relative_list
from benchmarks.datasets.splits import class_splits, with_splits
from benchmarks.datasets.transfer_dataset import keys_by_domain
from benchmarks.datasets.tree_scan import Listing, Place, check_root, join_listings, scan, scan_listed
from benchmarks.datasets.wnids import synset_of

#: c of SRE-CLIP's balance term on this set (docs/methods.md, SRE-CLIP): ``--set sre_clip.unseen_share=0.82``.
UNSEEN_SHARE = 0.82

WEBVISION = ("webvision", "webvision2018", "webvision2", "WebVision")
IMAGES = ("val_images_resized", "val_images_256", "val_images", "val", "image", "images")
#: Where WebVision's lists are: in its info archive, where its benchmark scripts put them, or beside both.
SYNSETS = ("info/synsets.txt", "synsets.txt", "meta/synsets.txt")
VAL_LISTS = ("info/val_filelist.txt", "val_filelist.txt", "meta/val.txt", "meta/val_filelist.txt", "val.txt")


class I2WebV(FolderDataset):
    """ImageNet's training folders beside WebVision 2.0's lists and validation images."""

    card = DatasetCard(
        name="i2webv",
        title="I2WebV: ImageNet to WebVision, 1,000 seen and 5,000 classes in all",
        version="v1",
        source="ImageNet (ILSVRC 2012 training set): https://image-net.org; WebVision 2.0 (2018), info and validation "
        "images: https://data.vision.ee.ethz.ch/cvl/webvision/dataset2018.html",
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
            "class names are not published: a class is called by its first synonym, and by its hypernym or another "
            "synonym too where several classes share that",
            "every class of the source is seen, so validation cannot hold classes back: it is the accuracy on a tenth "
            "of the source images",
            "the unlabelled target images are the test images, as the paper does",
            "published for DAZSL: the class split of the retrieval protocols is our seeded rule over the seen classes",
        ),
        layout="ROOT/imagenet/train/WNID/* and ROOT/webvision/{info/synsets.txt,info/val_filelist.txt,"
        "val_images_resized/*} (or ROOT/webvision/{meta/synsets.txt,meta/val.txt,val/*}, as WebVision's scripts do,"
        " or info/synsets.txt and image/WNID/*)",
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
        with self._errors_named():
            file = self._info(SYNSETS)
            ids = self._read_list(file)
            try:
                names = class_names(ids)
            except DatasetError as error:
                raise DatasetError(f"{file}: {error}; fetch it again") from error
        return dict(zip(names, ids, strict=True))

    def read(self, root: Path) -> Listing:
        """ImageNet's tree, and the validation images that WebVision's list names."""
        root = check_root(root)
        wnids = list(self.wnids.values())
        source = scan(root, self.places)
        folder = self._webvision()
        images = [name for name in IMAGES if (root / folder / name).is_dir()]
        if not images:
            raise DatasetError(f"{root / folder} has no folder {' or '.join(IMAGES)}; the layout is {self.card.layout}")
        classed = [name for name in images if any((root / folder / name / wnid).is_dir() for wnid in wnids)]
        if classed:
            target = scan(root, [Place("webvision", (f"{folder}/{classed[0]}",))])
        else:
            target = self._listed(root, f"{folder}/{images[0]}", wnids)
        notes = (f"class list: {display_path(self._info(SYNSETS), self.folder)}", *target.notes)
        return replace(keys_by_domain(join_listings([source, target])), notes=(*source.notes, *notes))

    def _listed(self, root: Path, folder: str, wnids: Sequence[str]) -> Listing:
        """The validation images that WebVision's list names, all in one folder."""
        file = self._info(VAL_LISTS)
        placed = read_relative_list(file, folder, 1, root=root, spelled=IMAGES)
        beyond = placed.rows[placed.rows["label"] >= len(wnids)]
        if len(beyond):
            raise DatasetError(
                f"{file}: label {beyond['label'].iloc[0]} is beyond the {len(wnids)} classes of synsets.txt"
            )
        classes = [wnids[label] for label in placed.rows["label"]]
        listing = scan_listed(root, placed.rows["path"], domain="webvision", classes=classes)
        notes = (f"list of webvision: {display_path(file, root)}, images from {folder}", *prefix_notes([placed]))
        return replace(listing, notes=notes)

    def arrange(self, images: pd.DataFrame) -> pd.DataFrame:
        """Classes by WordNet id; the unseen ones are test classes."""
        name_of = {wnid: name for name, wnid in self.wnids.items()}
        names = images["class"].map(name_of)
        seen = set(self.closed_set.seen)
        source = images["domain"].eq("imagenet")
        stray = names.isna() | (source & ~names.isin(seen))
        for folder in sorted(images.loc[stray, "class"].unique()):
            count = int((stray & (images["class"] == folder)).sum())
            self.note(
                "unknown_class", folder, "not one of the seen classes of synsets.txt; its images are left out", count
            )
        table = images.assign(**{"class": names})[~stray].reset_index(drop=True)
        require_images(table, dict.fromkeys(self.closed_set.seen, ""), "imagenet", self.folder)
        require_images(table, self.wnids, "webvision", self.folder)
        splits = {**class_splits(self.closed_set.seen), **dict.fromkeys(self.closed_set.unseen, "test")}
        return with_splits(table, splits, self.card.gallery_domain)

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

    def _info(self, names: Sequence[str]) -> Path:
        """One of WebVision's lists, at the first of its usual places."""
        folder = self.folder / self._webvision()
        file = next((folder / name for name in names if (folder / name).is_file()), None)
        if file is None:
            raise DatasetError(
                f"{folder / names[0]} does not exist, nor {' nor '.join(names[1:])}: the classes are those of "
                "WebVision 2.0's own lists, which are not shipped; fetch its info archive. "
                f"The layout is {self.card.layout}"
            )
        return file

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

    The words in brackets are the first hypernym's first synonym. Where these are not different either, they are the
    first of the class's own other synonyms (``robin (American robin)``), then of its hypernyms' synonyms, then of the
    synonyms further up, that no other class has; at last the number of its sense among WordNet's senses of the word.
    No name contains an id. Raises :class:`DatasetError` for an id that is not in WordNet.
    """
    synsets = [synset_of(wnid) for wnid in wnids]
    names = [_words(synset)[0] for synset in synsets]
    several = Counter(name.lower() for name in names)
    for place, synset in enumerate(synsets):
        above = _above(synset)
        if several[names[place].lower()] > 1 and above:
            names[place] = f"{names[place]} ({_words(above[0])[0]})"
    several = Counter(name.lower() for name in names)
    ambiguous = [place for place, name in enumerate(names) if several[name.lower()] > 1]
    options = {
        place: [text for text in _qualified(synsets[place]) if text.lower() not in several] for place in ambiguous
    }
    offered = Counter(text.lower() for texts in options.values() for text in dict.fromkeys(texts))
    for place in ambiguous:
        unique = [text for text in options[place] if offered[text.lower()] == 1]
        names[place] = unique[0] if unique else _numbered(synsets[place])
    return names


def _words(synset: Any) -> list[str]:
    """A synset's synonyms, the first one first."""
    return [name.replace("_", " ") for name in synset.lemma_names()]


def _above(synset: Any) -> list[Any]:
    return [*synset.hypernyms(), *synset.instance_hypernyms()]


def _qualified(synset: Any) -> list[str]:
    """Names that a class could have beside its first synonym, the most natural first."""
    first, *others = _words(synset)
    levels = [[synset], _above(synset)]
    while levels[-1]:
        levels.append([higher for synset in levels[-1] for higher in _above(synset)])
    above = [word for level in levels[1:] for synset in level for word in _words(synset)]
    return [f"{first} ({word})" for word in dict.fromkeys([*others, *above]) if word.lower() != first.lower()]


def _numbered(synset: Any) -> str:
    """The first synonym with the number of its sense among the word's senses in WordNet."""
    from nltk.corpus import wordnet

    senses = wordnet.synsets(synset.lemma_names()[0], "n")
    return f"{_words(synset)[0]} (sense {senses.index(synset) + 1})"
