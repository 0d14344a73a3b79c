"""Large data sets: orders, splits and subsets of sets of the same format, made here."""

import gzip
import importlib.util
import io
import json

import numpy as np
import pytest
from PIL import Image

from batchscale import datasets
from batchscale.datasets import imagenet, large, open_images, pictures, sentences, tokens

CLASSES = [f"n{number:08}" for number in range(6)]
RANDOM = np.random.default_rng(0)


def picture(number, size=(20, 24), ending="JPEG"):
    file = io.BytesIO()
    image = Image.new("RGB", size[::-1], (5 * number,) * 3)  # grey: JPEG keeps it but for rounding
    image.save(file, "PNG" if ending == "PNG" else "JPEG", quality=95)
    return file.getvalue()


def image_names(each=7):
    train = [(f"{c}_{i}.JPEG", label) for label, c in enumerate(CLASSES) for i in range(each)]
    held = [(f"ILSVRC2012_val_{i:08}.JPEG", i % len(CLASSES)) for i in range(12)]
    return {"train": train, "validation": held}


@pytest.fixture
def folders(tmp_path):
    """ImageNet with 42 and 12 images, unpacked into folders of classes."""
    root = tmp_path / "imagenet"
    for split, names in image_names().items():
        for number, (name, label) in enumerate(names):
            path = root / ("val" if split == "validation" else split) / CLASSES[label] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number))
    return root


@pytest.fixture
def records(tmp_path):
    """The same as TFDS prepares it."""
    root, version = tmp_path / "tfds" / "imagenet2012" / "5.1.0", "5.1.0"
    kinds = "tensorflow_datasets.core.features."
    features = {
        "image": {
            "pythonClassName": f"{kinds}image_feature.Image",
            "image": {
                "dtype": "uint8",
                "shape": {"dimensions": ["-1", "-1", "3"]},
                "encodingFormat": "jpeg",
            },
        },
        "label": {
            "pythonClassName": f"{kinds}class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(len(CLASSES))},
        },
        "file_name": {"pythonClassName": f"{kinds}text_feature.Text", "text": {}},
    }
    splits = {
        split: [
            {"image": picture(number), "label": label, "file_name": name.encode()}
            for number, (name, label) in enumerate(names)
        ]
        for split, names in image_names().items()
    }
    write_records(root, "imagenet2012", version, features, splits, key="file_name")
    return root


def write_records(folder, name, version, features, splits, *, key):
    """A set as TFDS prepares it in array_record format, two files a split."""
    module = pytest.importorskip("array_record.python.array_record_module")
    hashing = pytest.importorskip("tensorflow_datasets.core.hashing")
    from tensorflow_datasets.proto import tf_example_pb2

    folder.mkdir(parents=True)
    kinds = "tensorflow_datasets.core.features."
    structure = {"pythonClassName": f"{kinds}features_dict.FeaturesDict"}
    (folder / "features.json").write_text(
        json.dumps({**structure, "featuresDict": {"features": features}})
    )
    infos = []
    for split, examples in splits.items():
        hasher = hashing.Hasher(split)
        ordered = sorted(examples, key=lambda x, h=hasher: h.hash_key(x[key]))
        parts = [list(part) for part in np.array_split(np.arange(len(ordered)), 2)]
        for shard, part in enumerate(parts):
            path = folder / f"{name}-{split}.array_record-{shard:05}-of-00002"
            writer = module.ArrayRecordWriter(str(path), "group_size:1")
            for i in part:
                example = tf_example_pb2.Example()  # pyright: ignore
                for field, value in ordered[i].items():
                    of = example.features.feature[field]
                    if field not in features:
                        continue
                    if isinstance(value, bytes):
                        of.bytes_list.value.append(value)
                    else:
                        of.int64_list.value.append(value)
                writer.write(example.SerializeToString())
            writer.close()
        infos.append(
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": "1",
                "shardLengths": [str(len(part)) for part in parts],
            }
        )
    info = {"name": name, "version": version, "fileFormat": "array_record", "splits": infos}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def numbers(source):
    """Which image each example is, by its colour, and its label."""
    found = [(source[i]["image"], int(source[i]["label"])) for i in range(len(source))]
    return [(round(float(image.mean() / 5)), label) for image, label in found]


def test_an_image_has_one_size_and_three_channels_whatever_the_file():
    for size in ((20, 24), (24, 20), (5, 50), (300, 300)):
        for ending in ("JPEG", "PNG"):
            image = pictures.decoded(picture(9, size, ending), side=16)
            assert image.shape == (16, 16, 3)
            assert image.dtype == np.uint8
    grey = io.BytesIO()
    Image.new("L", (30, 20), 50).save(grey, "PNG")
    cmyk = io.BytesIO()
    Image.new("CMYK", (30, 20)).save(cmyk, "JPEG")
    assert (pictures.decoded(grey.getvalue(), side=8) == 50).all()
    assert (pictures.decoded(cmyk.getvalue(), side=8) == 255).all()
    with pytest.raises(ValueError, match=r"x\.JPEG: not an image that can be read"):
        pictures.decoded(picture(3)[:40], where="x.JPEG")


def test_the_middle_of_the_longer_side_is_kept():
    stripes = np.zeros((10, 30, 3), np.uint8)
    stripes[:, 10:20] = 200
    file = io.BytesIO()
    Image.fromarray(stripes).save(file, "PNG")
    assert (pictures.decoded(file.getvalue(), side=10) == 200).all()


def test_folders_and_records_give_the_same_examples_in_the_same_order(folders, records):
    for subset in imagenet.SUBSETS:
        of_folders, of_records = (
            imagenet.splits(at, subset=subset, test=10, side=8) for at in (folders, records)
        )
        for split in ("train", "validation", "test"):
            assert numbers(of_folders[split]) == numbers(of_records[split])


def test_splits_are_disjoint_whole_and_labelled_as_their_folders(folders):
    found = {k: numbers(v) for k, v in imagenet.splits(folders, test=10, side=8).items()}
    assert {k: len(v) for k, v in found.items()} == {"train": 32, "validation": 12, "test": 10}
    every = found["train"] + found["test"]
    assert sorted(number for number, _ in every) == list(range(42))
    assert all(label == number // 7 for number, label in every)
    assert sorted(found["validation"]) == [(i, i % 6) for i in range(12)]
    hashing = pytest.importorskip("tensorflow_datasets.core.hashing")
    names = image_names()["train"]
    order = sorted(range(42), key=lambda i: hashing.Hasher("train").hash_key(names[i][0]))
    assert [number for number, _ in found["test"] + found["train"]] == order


def test_subsets_are_halves_that_share_nothing_with_the_test_split(folders):
    whole, images, classes = (
        {k: numbers(v) for k, v in imagenet.splits(folders, subset=s, test=10, side=8).items()}
        for s in imagenet.SUBSETS
    )
    assert images["train"] == whole["train"][:16]
    assert (images["validation"], images["test"]) == (whole["validation"], whole["test"])
    for split in whole:
        even = [(number, label // 2) for number, label in whole[split] if label % 2 == 0]
        assert classes[split] == even
    for subset in (whole, images, classes):
        assert not {n for n, _ in subset["train"]} & {n for n, _ in subset["test"]}
    assert (imagenet.OFFICIAL["train"] - imagenet.TEST) % 2 == 0


def test_a_validation_folder_without_classes_goes_by_the_published_list(folders, monkeypatch):
    for path in list((folders / "val").glob("*/*.JPEG")):
        path.rename(folders / "val" / path.name)
    for path in (folders / "val").glob("n*"):
        path.rmdir()
    listed = "\n".join(CLASSES[label] for _, label in image_names()["validation"])
    monkeypatch.setattr(imagenet.prepared, "package_text", lambda path: listed)
    found = numbers(imagenet.splits(folders, test=10, side=8)["validation"])
    assert sorted(found) == [(i, i % 6) for i in range(12)]
    (folders / "val" / "ILSVRC2012_val_00000003.JPEG").unlink()
    with pytest.raises(ValueError, match="11 images and no folders of classes, wanted 12"):
        imagenet.splits(folders, test=10)


def test_the_published_list_has_the_50_000_labels():
    names = imagenet.prepared.package_text("datasets/imagenet2012/validation_labels.txt").split()
    assert (len(names), len({*names})) == (50_000, 1000)
    classes = imagenet.prepared.package_text("datasets/imagenet2012/labels.txt").split()
    assert classes == sorted({*names})


def test_what_is_missing_of_imagenet_says_what_to_do(tmp_path, folders):
    with pytest.raises(FileNotFoundError, match=r"no train, and no dataset_info.json. Unpack"):
        imagenet.splits(tmp_path)
    with pytest.raises(ValueError, match="test: got 42, wanted 1 to 41"):
        imagenet.splits(folders, test=42)
    with pytest.raises(ValueError, match="subset: got 'half', wanted one of all"):
        imagenet.splits(folders, subset="half")
    (folders / "train" / "n00000009").mkdir()
    with pytest.raises(ValueError, match="n00000009 is in one of them alone"):
        imagenet.splits(folders, test=10)


@pytest.fixture
def labelled(tmp_path):
    """Open Images with four classes, of which one is not trainable."""
    root = tmp_path / "open_images_v4"
    root.mkdir()
    (root / "classes-trainable.txt").write_text("/m/a\n/m/b\n/m/c\n")
    rows = {
        "train": ["{1},verification,/m/a,1", "{0},verification,/m/c,0", "{0},verification,/m/b,1"],
        "validation": [
            "{1},verification,/m/a,1",
            "{0},verification,/m/c,1",
            "{0},crowdsource-verification,/m/c,1",  # says the same again
            "{1},verification,/m/b,0",
            "{1},crowdsource-verification,/m/b,1",  # contradicts it
            "{1},verification,/m/z,1",  # no trainable class
            "{2},verification,/m/a,0",
            "{2},verification,/m/b,0",
            "{2},verification,/m/c,1",
        ],
        "test": ["{0},verification,/m/a,0"],
    }
    for split, lines in rows.items():
        (root / split).mkdir()
        ids = ["00000000000000aF"[:14] + "af", "0123456789abcdef", "ffffffffffffffff"]
        text = "ImageID,Source,LabelName,Confidence\n"
        text += "".join(line.format(*ids) + "\n" for line in lines)
        (root / f"{split}-annotations-human-imagelabels.csv").write_text(text)
        for number, name in enumerate(ids):
            (root / split / f"{name}.jpg").write_bytes(picture(number))
    return root


def test_open_images_has_what_people_agreed_on(labelled):
    found = open_images.splits(labelled, side=8)
    assert {split: len(source) for split, source in found.items()} == {
        "train": 2,
        "validation": 3,
        "test": 1,
    }
    validation = [found["validation"][i] for i in range(3)]
    assert [x["label"].tolist() for x in validation] == [[2, -1, -1], [0, -1, -1], [0, 1, 2]]
    assert [x["positive"].tolist() for x in validation] == [
        [True, False, False],
        [True, False, False],
        [False, False, True],
    ]
    assert [int(x["place"]) for x in validation] == [0, 1, 2]
    assert [round(float(x["image"].mean() / 5)) for x in validation] == [0, 1, 2]
    assert found["train"][0]["label"].tolist() == [1, 2, -1]
    assert found["validation"][-1]["place"] == 2


def test_a_split_with_too_many_labels_has_no_places(labelled, monkeypatch):
    monkeypatch.setattr(open_images, "CAPACITY", 4)
    found = open_images.splits(labelled, side=8)
    assert [int(found["validation"][i]["place"]) for i in range(3)] == [-1, -1, -1]
    assert int(found["train"][1]["place"]) == 2


def test_damaged_and_missing_files_of_open_images_are_told(labelled):
    (labelled / "validation" / "0123456789abcdef.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images are missing.*0123456789abcdef"):
        open_images.splits(labelled)
    path = labelled / "test-annotations-human-imagelabels.csv"
    header = "ImageID,Source,LabelName,Confidence\n"
    for line, message in (
        ("0123,verification,/m/a,1", "an image has another name"),
        ("0123456789abcdeg,verification,/m/a,1", "an image has another name"),
        ("0123456789abcdef0,verification,/m/a,1", "an image has another name"),
        ("0123456789abcdef,machine,/m/a,0.7", "confidences other than 0 and 1"),
        ("0123456789abcdef,verification,/m/z,1", "none of its 1 labels is of the 3 classes"),
    ):
        path.write_text(f"{header}{line}\n")
        with pytest.raises(ValueError, match=message):
            open_images.splits(labelled)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not a table of verified labels"):
        open_images.splits(labelled)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no test-annotations-human-imagelabels\.csv"):
        open_images.splits(labelled)
    (labelled / "classes-trainable.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no classes-trainable.txt.*published at https"):
        open_images.splits(labelled)


WORDS = ["the", "a", "cat", "dog", "sat", "ran", "under", "mat", ".", ",", "slowly", "one", "two"]


def text(count, seed):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(2, 12))) for _ in range(count)]


@pytest.fixture
def benchmark(tmp_path):
    """LM1B with 300 and 400 sentences."""
    pytest.importorskip("sentencepiece")
    root = tmp_path / "published"
    for folder, stem, lines in (
        ("training-monolingual.tokenized.shuffled", "news.en-000{:02}-of-00100", text(300, 1)),
        (
            "heldout-monolingual.tokenized.shuffled",
            "news.en.heldout-000{:02}-of-00050",
            text(400, 2),
        ),
    ):
        (root / folder).mkdir(parents=True)
        for shard in range(2):
            some = "".join(f"{line}\n" for line in lines[shard::2])
            (root / folder / stem.format(shard)).write_text(some)
    return root


OPTIONS = {"length": 12, "vocabulary": 300}


def test_sentences_become_tokens_of_one_length_and_come_back(benchmark, tmp_path):
    folder = datasets.prepare("lm1b", benchmark, directory=tmp_path / "here", **OPTIONS)
    assert large.find("lm1b", directory=tmp_path / "here") == folder
    found = datasets.sources("lm1b", directory=tmp_path / "here")
    assert found["train"]["tokens"].shape == (300, 12)
    assert found["train"]["tokens"].dtype == np.uint16
    words = tokens.Vocabulary((folder / "vocabulary.model").read_bytes())
    assert len(words) == 300
    ordered = sorted(text(300, 1), key=sentences.key)
    for row, sentence in zip(found["train"]["tokens"], ordered, strict=True):
        real = np.count_nonzero(row)
        assert not row[real:].any()
        decoded = words.decoded(row)
        assert decoded == sentence if real < 12 else sentence.startswith(decoded.rstrip())
        assert row[real - 1] == 2 or real == 12
    said = tokens.manifest(folder)
    tokens_there = int(np.count_nonzero(found["train"]["tokens"]))
    assert said["splits"]["train"]["tokens"] == tokens_there
    assert said["splits"]["train"]["sentences"] == 300
    tokens.load(folder, verify=True)
    with pytest.raises(ValueError, match="12 tokens of 300, and 'lm1b' has 128 of 32,000"):
        large.streams("lm1b", directory=tmp_path / "here")


def test_held_out_sentences_go_to_one_split_by_their_text(benchmark, tmp_path):
    folder = datasets.prepare("lm1b", benchmark, directory=tmp_path / "here", **OPTIONS)
    words = tokens.Vocabulary((folder / "vocabulary.model").read_bytes())
    held = text(400, 2)
    buckets = [[s for s in held if sentences.key(s) >> 59 == number] for number in (0, 1)]
    for split, bucket in zip(("validation", "test"), buckets, strict=True):
        rows = tokens.load(folder)[split]["tokens"]
        expected, _ = words.encoded(sorted(bucket, key=sentences.key), 12)
        np.testing.assert_array_equal(rows, expected)
    assert not {*buckets[0]} & {*buckets[1]}


def test_the_order_of_the_source_does_not_matter(benchmark, tmp_path):
    one = datasets.prepare("lm1b", benchmark, directory=tmp_path / "one", **OPTIONS)
    features = {
        "text": {
            "pythonClassName": "tensorflow_datasets.core.features.text_feature.Text",
            "text": {},
        }
    }
    splits = {
        split: [{"text": s.encode(), "key": str(i)} for i, s in enumerate(lines)]
        for split, lines in (("train", text(300, 1)), ("test", text(400, 2)))
    }
    write_records(tmp_path / "lm1b" / "1.1.0", "lm1b", "1.1.0", features, splits, key="key")
    other = tokens.prepare(
        sentences.of_records(tmp_path / "lm1b" / "1.1.0", "train"),
        sentences.of_records(tmp_path / "lm1b" / "1.1.0", "test"),
        tmp_path / "other",
        name="lm1b",
        **OPTIONS,
    )
    assert tokens.manifest(one) == tokens.manifest(other)
    assert (one / "vocabulary.model").read_bytes() == (other / "vocabulary.model").read_bytes()
    # And a vocabulary of one's own is taken as it is.
    third = tokens.prepare(
        sentences.of_records(tmp_path / "lm1b" / "1.1.0", "train"),
        sentences.of_records(tmp_path / "lm1b" / "1.1.0", "test"),
        tmp_path / "third",
        name="lm1b",
        length=12,
        vocabulary=one / "vocabulary.model",
    )
    assert tokens.manifest(third) == tokens.manifest(one)


def test_c4_is_cut_into_lines(tmp_path):
    pytest.importorskip("sentencepiece")
    for part, lines in (("train", text(120, 3)), ("validation", text(400, 4))):
        documents = [
            {"text": "\n".join(lines[i : i + 4]), "url": "x"} for i in range(0, len(lines), 4)
        ]
        with gzip.open(tmp_path / f"c4-{part}.00000-of-01024.json.gz", "wt") as file:
            file.writelines(json.dumps(x) + "\n" for x in documents)
    folder = datasets.prepare("common_crawl", tmp_path, directory=tmp_path / "here", **OPTIONS)
    assert tokens.load(folder)["train"]["tokens"].shape == (120, 12)
    with pytest.raises(FileExistsError, match="it is there already"):
        datasets.prepare("common_crawl", tmp_path, directory=tmp_path / "here", **OPTIONS)


def test_damage_of_prepared_text_is_told(benchmark, tmp_path):
    folder = datasets.prepare("lm1b", benchmark, directory=tmp_path / "here", **OPTIONS)
    changed = np.load(folder / "test.npy", mmap_mode="r+")
    changed[0, 0] += 1
    changed.flush()
    tokens.load(folder)
    with pytest.raises(ValueError, match=r"test\.npy: its checksum is"):
        tokens.load(folder, verify=True)
    np.save(folder / "test.npy", np.zeros((3, 12), np.uint16))
    with pytest.raises(ValueError, match=r"test\.npy: uint16 of shape \(3, 12\), wanted uint16"):
        tokens.load(folder)
    (folder / "test.npy").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"test\.npy: it cannot be read"):
        tokens.load(folder)
    (folder / "tokens.json").write_text("{}")
    with pytest.raises(ValueError, match="it is damaged"):
        tokens.load(folder)
    (folder / "tokens.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokens\.json"):
        tokens.load(folder)


def test_what_cannot_be_prepared_leaves_nothing_behind(benchmark, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="100,000 tokens, wanted 65,536 at most"):
        datasets.prepare("lm1b", benchmark, directory=tmp_path / "here", vocabulary=100_000)
    with pytest.raises(ValueError, match="9,000 tokens cannot be learned from these sentences"):
        datasets.prepare("lm1b", benchmark, directory=tmp_path / "here", vocabulary=9_000)
    assert not list((tmp_path / "here").iterdir())
    with pytest.raises(FileNotFoundError, match=r"no training-mono.*Unpack http"):
        datasets.prepare("lm1b", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"source: none was given. Fetch some of"):
        datasets.prepare("common_crawl")
    with pytest.raises(ValueError, match="name: got 'mnist', wanted 'lm1b', 'common_crawl' or"):
        datasets.prepare("mnist")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "tensorflow" else find_spec(name, *rest),
    )
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match=r"nothing prepared by TFDS.*not installed"):
        datasets.prepare("lm1b")


@pytest.mark.parametrize("name", large.SETS)
def test_a_set_that_is_missing_says_where_it_was_looked_for_and_what_to_do(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"'{name}' was not found in {tmp_path}. [A-Z]"):
        datasets.sources(name, directory=tmp_path)


def test_sets_are_found_where_they_are(folders, records, labelled):
    root = folders.parent
    assert large.find("imagenet_half_images", directory=root) == folders
    assert large.find("imagenet", directory=root / "tfds") == records
    assert large.find("open_images_v4", directory=root) == labelled
    streams = large.streams("open_images_v4", directory=root)
    assert len(streams["validation"]) == 3
    batch = streams["validation"].read([2, 0])
    assert batch["place"].tolist() == [2, 0]
    assert batch["positive"].dtype == bool
