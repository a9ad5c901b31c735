"""Tables on the page."""

from bokeh.models import CustomJS, DataTable


def redrawn_with_its_source(table: DataTable) -> DataTable:
    """Return the table, which from now on shows its source's new values.

    Bokeh draws a table again when the rows of its view change, and takes as many others for the same.
    """
    table.source.js_on_change(
        "data", CustomJS(args={"view": table.view}, code="view.change.emit()")
    )
    return table
