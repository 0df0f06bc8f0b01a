"""The parts that the vision scripts write by hand, against plain definitions."""

import json
import runpy

import pytest
import torch
from tiny import ROOT

FOLDER = ROOT / "examples/vision"


def names_of(script):
    return runpy.run_path(str(FOLDER / f"{script}.py"))


@pytest.fixture(scope="module")
def detection():
    return names_of("detection")


# --- detection.py and ssd.py ---------------------------------------------------------------------------------------------


def overlap_of(a, b):
    """IoU of two boxes, as lists of numbers."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def plain_average_precision(images, label, threshold):
    """By the definition, for one class and one threshold: walk down the list of all detections of all images."""
    told = sorted(((float(score), number, box.tolist()) for number, (boxes, classes, scores, _, _) in enumerate(images)
                   for box, kind, score in zip(boxes, classes, scores) if kind == label), key=lambda row: -row[0])
    left = [[box.tolist() for box, kind in zip(boxes, classes) if kind == label] for *_, boxes, classes in images]
    count, right, curve = sum(map(len, left)), 0, []
    for place, (_, number, box) in enumerate(told, 1):
        best = max(left[number], key=lambda true: overlap_of(box, true), default=None)
        if best is not None and overlap_of(box, best) >= threshold:
            left[number].remove(best)
            right += 1
        curve.append((right / count, right / place))
    return sum(max((precision for recall, precision in curve if recall >= step / 100 - 1e-9), default=0.0)
               for step in range(101)) / 101


def random_images(seed, count=8):
    """For each image boxes, classes and scores that were detected, and boxes and classes that are true."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(shape, generator=random)

    for _ in range(count):
        corner = draw(int(5 * draw(1)), 2)
        true = torch.cat([corner, corner + 0.2 + 0.3 * draw(*corner.shape)], 1)
        classes = (1 + 3 * draw(len(true))).long()
        near = true + 0.03 * (draw(*true.shape) - 0.5)
        boxes, told = torch.cat([near, true, true + 0.1]), torch.cat([classes, classes % 3 + 1, classes])
        yield boxes, told, draw(len(told)), true, classes


@pytest.mark.parametrize("seed", range(3))
def test_mean_average_precision_is_what_its_definition_says(detection, seed):
    images = list(random_images(seed))
    rows = torch.cat([detection["hits"](*image) for image in images])
    classes = torch.cat([image[-1] for image in images])
    expected = [plain_average_precision(images, label, threshold / 100) for label in classes.unique()
                for threshold in range(50, 100, 5)]
    assert 0.05 < sum(expected) / len(expected) < 0.95
    value = detection["mean_average_precision"](rows, classes).item()
    assert value == pytest.approx(sum(expected) / len(expected), abs=1e-9)


def test_mean_average_precision_of_right_and_of_no_detections(detection):
    boxes, classes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]), torch.tensor([1, 2])
    nothing = boxes[:0], classes[:0], torch.zeros(0)
    for said, value in (((boxes, classes, torch.ones(2)), 1.0), (nothing, 0.0),
                        ((boxes[:1], classes[:1], torch.ones(1)), 0.5),                 # one class of two
                        ((boxes, classes.flip(0), torch.ones(2)), 0.0)):                # right boxes, wrong classes
        assert detection["mean_average_precision"](detection["hits"](*said, boxes, classes), classes).item() == value
    twice = detection["hits"](boxes[[0, 0]], classes[[0, 0]], torch.tensor([0.9, 0.8]), boxes, classes)
    assert twice[:, 2:].tolist() == [[1.0] * 10, [0.0] * 10]                             # a box is found once


def test_non_maximum_suppression_keeps_the_surest_of_boxes_that_overlap(detection):
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9], [0.0, 0.5, 1.0, 1.5], [2.0, 2.0, 3.0, 3.0]])
    assert detection["suppressed"](boxes, torch.tensor([0.5, 0.9, 0.8, 0.1])).tolist() == [1, 2, 3]
    assert detection["suppressed"](boxes[:0], torch.zeros(0)).tolist() == []


def test_offsets_lead_from_anchors_to_boxes(detection):
    corner = torch.rand(10, 2)
    boxes, anchors = torch.cat([corner, corner + 0.1 + torch.rand(10, 2)], 1), 0.1 + torch.rand(10, 4)
    torch.testing.assert_close(detection["moved_by"](detection["offsets_to"](boxes, anchors), anchors), boxes)


def test_an_anchor_has_the_class_of_the_box_it_covers_and_each_box_has_an_anchor(detection):
    ssd = names_of("ssd")
    anchors = ssd["make_anchors"](48)
    large = detection["corners"](anchors)[-1]
    tiny = torch.tensor([0.1, 0.1, 0.12, 0.12])                     # half of it is covered by no anchor
    classes, offsets = ssd["assigned"](torch.stack([large, tiny]), torch.tensor([3, 2]), anchors)
    assert classes[-1] == 3 and offsets[-1].abs().max() < 1e-5 and (classes == 2).sum() == 1
    overlap = detection["iou"](detection["corners"](anchors), large[None])[:, 0]
    assert torch.equal(classes == 3, overlap >= 0.5) and (classes == 0).sum() > 300
    assert not ssd["assigned"](torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), anchors)[0].any()


def test_made_data_and_a_folder_in_the_form_of_coco_are_read_alike(detection, tmp_path):
    from PIL import Image
    images, coco = detection["made"](6, 48, seed=3)
    images = (images.clamp(0, 1) * 255).byte()
    for image, entry in zip(images, coco["images"]):
        entry["file_name"] = f"{entry['id']}.png"
        Image.fromarray(image[0].numpy()).save(tmp_path / entry["file_name"])
    del coco["annotations"][0]
    (tmp_path / "annotations.json").write_text(json.dumps(coco), encoding="utf-8")
    made, read = (detection["Detections"](*data) for data in ((images / 255, coco), detection["read"](tmp_path, 48)))
    batch = detection["collate"]([read[number] for number in range(6)])
    assert torch.equal(batch["images"], made.images) and len({len(boxes) for boxes in batch["boxes"]}) > 1
    for number, (boxes, classes) in enumerate(zip(batch["boxes"], batch["classes"])):
        assert torch.equal(boxes, made.boxes[number]) and torch.equal(classes, made.classes[number])
        assert ((boxes >= 0) & (boxes <= 1)).all() and set(classes.tolist()) <= {1, 2, 3}
    inside = made[0][1][0] * 48                                     # what is in a box differs from the ground
    left, top, right, bottom = inside.round().long().tolist()
    assert (made.images[0, 0, top:bottom, left:right] - 0.5).abs().mean() > 0.1


# --- the others ----------------------------------------------------------------------------------------------------------


def test_ctc_scores_are_decoded_by_joining_repeats_and_leaving_out_blanks():
    codes = torch.tensor([[0, 1, 1, 0, 1, 2, 2, 0], [0, 0, 0, 0, 0, 0, 0, 0], [3, 3, 3, 3, 3, 3, 3, 3]])
    assert names_of("crnn_ctc")["decoded"](torch.nn.functional.one_hot(codes, 4).float(), "abc") == ["aab", "", "c"]


def test_shifted_moves_each_image_by_a_pixel_at_most():
    images = torch.zeros(64, 1, 8, 8)
    images[:, :, 3, 4] = 100.0
    moved, _ = names_of("resnet")["shifted"](images, None)
    places = {divmod(place, 8) for place in moved.flatten(1).argmax(1).tolist()}
    assert places == {(y, x) for y in (2, 3, 4) for x in (3, 4, 5)}


def test_the_queue_holds_the_newest_keys_and_the_followers_follow():
    net = names_of("contrastive")["MoCo"](4, queue_size=5, momentum=0.75)
    before, views = [p.clone() for p in net.follower.parameters()], torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        for p in net.encoder.parameters():
            p.add_(1.0)
    old = net.queue.clone()
    for number in range(3):
        scores = net(views, views + number)
    expected = [(0.75 ** 3 * b + (1 - 0.75 ** 3) * p) for b, p in zip(before, net.leader.parameters())]
    for follower, value in zip(net.follower.parameters(), expected):
        torch.testing.assert_close(follower, value)
    keys = torch.nn.functional.normalize(net.follower(views + 2))
    assert net.place == 1 and scores.shape == (2, 6)
    torch.testing.assert_close(net.queue[[4, 0]], keys)             # the third pair, around the end
    assert not torch.equal(net.queue[1:4], old[1:4]) and scores.requires_grad
    net.eval()(views, views)
    assert net.place == 1                                           # an evaluation adds nothing
