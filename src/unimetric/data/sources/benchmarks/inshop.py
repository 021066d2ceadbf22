"""In-Shop Clothes Retrieval: query and gallery are sets of their own (Liu et al., *DeepFashion*, CVPR 2016)."""

from pathlib import Path

from unimetric.data.sources.benchmarks.finding import find_file, find_images
from unimetric.data.sources.benchmarks.listing import Listed, Listing
from unimetric.data.sources.benchmarks.text_tables import forward_slashes, read_table_with_header
from unimetric.errors import UserError

ROLES = ("train", "query", "gallery")
_COLUMNS = ("image_name", "item_id", "evaluation_status")
_FILE = "list_eval_partition.txt"
_IMAGES = "img/"


def read_inshop(folder: Path, require_images: bool) -> Listing:
    """Read In-Shop in the order of ``list_eval_partition.txt``; labels are its item ids, such as "id_00000002".

    A query is looked for among the gallery images only, never among the other queries. The folder has
    ``list_eval_partition.txt``, also in ``Eval`` or ``Anno``, and ``img``, also in ``Img``.
    """
    file = find_file(folder, "inshop", [_FILE, f"Eval/{_FILE}", f"Anno/{_FILE}"])
    # In this order, for where upper and lower case are the same "img" is there with either.
    images = find_images(folder, "inshop", ["Img/img", "img"], usual="img", required=require_images)
    listed = []
    for line, (image_name, label, role) in read_table_with_header(file, _COLUMNS, count_first=True):
        path = forward_slashes(image_name)
        if role not in ROLES:
            raise UserError(
                f"{file}, line {line}: unknown evaluation_status {role!r}; valid: {', '.join(ROLES)}; "
                "download the file again"
            )
        if not path.startswith(_IMAGES):
            raise UserError(
                f"{file}, line {line}: the image_name {image_name!r} does not start with {_IMAGES}; "
                "download the file again"
            )
        listed.append(Listed(path, label, role))
    return Listing(images.parent, file, listed)
