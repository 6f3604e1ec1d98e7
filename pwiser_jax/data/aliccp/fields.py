"""The fields of Ali-CCP: of common (user) lines, and of skeleton rows."""

USER_SINGLE = ("101", "121", "122", "124", "125", "126", "127", "128", "129")
USER_LISTS = ("109_14", "110_14", "127_14", "150_14")
ITEM_SINGLE: tuple[str, ...] = (
    "205",
    "206",
    "207",
    "216",
    "508",
    "509",
    "702",
    "853",
    "301",
)
ITEM_LISTS = ("210",)
WEIGHTED = ("508", "509", "702", "853")
"""Single-valued fields whose value is a number: ln(1 + count), and a fraction."""
