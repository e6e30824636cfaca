"""Where each benchmark's official files come from: the table that `make data` goes through, with licences.

Hashes are of files that were seen (git:… is the file's id in its repository's tree). Where none is known the file is
recorded on first fetch and marked so. Licences are as their repositories state them.
"""

from dataclasses import dataclass

RAW = "https://raw.githubusercontent.com"
AMBER = f"{RAW}/junyangwang0410/AMBER/534babf6bbfcce2e735c26289dedfb21cef3c939/data"
POPE = f"{RAW}/RUCAIBox/POPE/3df3ba1b110ecce25696989577fad583b67d4239/output/coco"
RLAIF_V = f"{RAW}/RLHF-V/RLAIF-V/83d917b2e8118ca8e7877a796d72af9bb3e6b356/eval/data"
LLAVA_RLHF = f"{RAW}/llava-rlhf/LLaVA-RLHF/830a083fd83e607da3c35f2e6aef833523c1e722/Eval"
NLTK = f"{RAW}/nltk/nltk_data"
COCO = "http://images.cocodataset.org"


@dataclass(frozen=True)
class Source:
    """One file to fetch.

    group    what the user asks for: a benchmark, coco or nltk
    path     where it lies in the data folder; for an archive, the folder that it is unpacked into
    digest   "sha256:…" or "git:…" (blob id); None if not known
    members  glob patterns of what to unpack; empty for a file that is no archive
    large    only fetched when asked for by --large
    """

    group: str
    url: str
    path: str
    licence: str
    digest: str | None = None
    members: tuple[str, ...] = ()
    large: bool = False


@dataclass(frozen=True)
class HubDataset:
    """A data set of the Hugging Face hub, fetched whole; archives in it are unpacked where they lie."""

    group: str
    repo: str
    path: str
    licence: str
    revision: str = "main"
    large: bool = False


@dataclass(frozen=True)
class ListedImages:
    """Images whose addresses stand in a fetched JSON list; named by `name`, addressed by `address`."""

    group: str
    listed_in: str
    name: str
    address: str
    path: str
    licence: str
    large: bool = False


@dataclass(frozen=True)
class ByHand:
    """What no program may or can fetch."""

    group: str
    url: str
    path: str
    licence: str
    what: str
    large: bool = False


def _amber(name, sha256):
    return Source("amber", f"{AMBER}/{name}", f"amber/{name}", "Apache-2.0", f"sha256:{sha256}")


def _pope(name, sha256):
    return Source("pope", f"{POPE}/{name}", f"pope/{name}", "MIT", f"sha256:{sha256}")


TABLE = (
    _amber("annotations.json", "db22a436c4836fbb295e60b4e80d519573077579fb7032f01b193c1bd022b797"),
    _amber("relation.json", "c4c1491e9bbc3209abc1888c12a1bf8413bdbab8a0d8be04b990a2e7680cf23e"),
    _amber("safe_words.txt", "f92cf1123f4578a2630832fac3e6ac4de36212ea55859d3bed4fd233723f4043"),
    _amber("metrics.txt", "2fbe2ee584d10e7ce0a568a4902d3d2296727d45f761bf091dd35c4e4b5bc6ac"),
    _amber("query/query_all.json", "127680ae61f7d4a92d2f7f07a8deaec07f0689b194d2c7c0f41ead7bd2c5bcf5"),
    ByHand(
        "amber",
        "https://drive.google.com/file/d/1MaCHgtupcZUjf007anNl4_MV0o4DjXvl/view",
        "amber/image",
        "see AMBER's README",
        "the images (Google Drive asks for a click): unpack AMBER_1.jpg … there",
    ),
    Source(
        "objhal",
        f"{RLAIF_V}/synonyms_refine.txt",
        "objhal/synonyms_refine.txt",
        "RLAIF-V: CC BY-NC 4.0, research only",
        "sha256:681041d2958d7871ed6fa69c3108f34aa6a0a354eb53ed4c5a425e65f86bc72a",
    ),
    Source(
        "objhal",
        f"{RLAIF_V}/obj_halbench_300_with_image.jsonl",
        "objhal/obj_halbench_300_with_image.jsonl",
        "RLAIF-V: CC BY-NC 4.0, research only; photographs of COCO",
        "git:cb8e15a81a1ddf720f306fda0decefb1ed80c31f",
    ),
    Source(
        "coco",
        f"{COCO}/annotations/annotations_trainval2014.zip",
        "coco",
        "CC BY 4.0",
        members=("annotations/instances_*2014.json", "annotations/captions_*2014.json"),
    ),
    Source("coco", f"{COCO}/zips/val2014.zip", "coco", "Flickr terms of use", members=("val2014/*.jpg",), large=True),
    Source(
        "mmhal",
        f"{RLAIF_V}/mmhal-bench_answer_template.json",
        "mmhal/mmhal-bench_answer_template.json",
        "see MMHal-Bench's card; this copy RLAIF-V, research only",
        "sha256:28ed24e19ffef292597c35f1dad37760b2e0a088b3b40ca3b50f105fc1b951bb",
    ),
    Source(
        "mmhal",
        f"{LLAVA_RLHF}/eval_gpt_mmhal.py",
        "mmhal/eval_gpt_mmhal.py",
        "GPL-3.0",
        "sha256:5ba718be65d03cb9e80321ad9eb08b37a0eb0040372e1fa20f78eaf525fe8f7c",
    ),
    ListedImages(
        "mmhal",
        "mmhal/mmhal-bench_answer_template.json",
        "image_id",
        "image_src",
        "mmhal/images",
        "each photographer's, on Flickr",
    ),
    _pope("coco_pope_random.json", "ac25245170b975a5bdf9080b23fd431dfe6be458bc038259c1f4f09a6bef7994"),
    _pope("coco_pope_popular.json", "72c1a8ad45d0c13514f5f22598261df41d3b533854d29682e924db50ed8aa753"),
    _pope("coco_pope_adversarial.json", "420b3407db1fa9f1187a805dca41cb7b97fd91504e6c2179706188c107fb8ef8"),
    HubDataset("vlind", "klee972/VLind-Bench", "vlind", "CC BY-SA 4.0"),
    Source(
        "nltk",
        f"{NLTK}/5db857e6f7df11eabb5e5665836db9ec8df07e28/packages/corpora/wordnet.zip",
        "nltk_data/corpora",
        "WordNet 3.0 licence",
        "git:3c68cd207844f071a5206f7fbed23e5c607ec02f",
        members=("wordnet/*",),
    ),
    Source(
        "nltk",
        f"{NLTK}/gh-pages/packages/tokenizers/punkt_tab.zip",
        "nltk_data/tokenizers",
        "see nltk_data",
        members=("punkt_tab/english/*",),
    ),
    Source(
        "nltk",
        f"{NLTK}/gh-pages/packages/taggers/averaged_perceptron_tagger_eng.zip",
        "nltk_data/taggers",
        "see nltk_data",
        members=("averaged_perceptron_tagger_eng/*",),
    ),
)
GROUPS = tuple(dict.fromkeys(source.group for source in TABLE))
