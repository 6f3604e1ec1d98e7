"""The schema and the manifest as JSON: round trips, and folders of old versions."""

import json

from pwiser_jax.data.prepared.manifest import CommonTable, Manifest, Split
from pwiser_jax.data.raw.flat import FlatSpec
from pwiser_jax.schema import CategoricalField, MultiValuedField, NumericalField, Schema

SCHEMA = Schema(
    categorical=(CategoricalField("item", 5), CategoricalField("city", 3)),
    numerical=(NumericalField("price", 2.0, 0.5),),
    multi_valued=(
        MultiValuedField("brands", 7, width=4),
        MultiValuedField("shops", 2, width=3, pool="mean"),
    ),
    common=("city", "brands"),
    extra=("p",),
)
SPLITS = {
    name: Split((f"{name}-00000.parquet", f"{name}-00001.parquet"), 9, {"click": 2})
    for name in ("train", "valid", "test")
}
MANIFEST = Manifest(
    "own",
    SCHEMA,
    FlatSpec(("item",), labels={"click": "click", "conversion": "conversion"}),
    {"price": 1.0},
    SPLITS,
    common=CommonTable("common.parquet", 4),
)


def test_reserved_ids_follow_a_fields_own():
    for field in (*SCHEMA.categorical, *SCHEMA.multi_valued):
        reserved = (field.missing, field.unseen, field.rare)
        assert reserved == tuple(range(field.size, field.rows))


def test_a_schema_comes_back_from_json():
    tree = json.loads(json.dumps(SCHEMA.to_json()))
    assert Schema.from_json(tree) == SCHEMA
    assert hash(Schema.from_json(tree)) == hash(SCHEMA)


def test_a_manifest_comes_back_from_json():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_a_manifest_of_an_earlier_version_has_no_shared_fields():
    tree = json.loads(MANIFEST.to_json())
    for key in ("multi_valued", "common"):
        del tree["schema"][key]
    del tree["common"]
    manifest = Manifest.from_json(json.dumps(tree))
    assert manifest.common is None
    assert manifest.schema.multi_valued == manifest.schema.common == ()
    assert manifest.schema.categorical == SCHEMA.categorical
