//! `summary.csv`: a row for each finished cell.

use crate::error::{Context, Error, Result};
use crate::results::columns::{self, Row};

/// Tells Excel that a file is UTF-8; written only when asked for.
pub const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The whole file: RFC 4180, UTF-8, one header row.
///
/// # Errors
/// None that a row can cause; the CSV writer's signature has one.
pub fn render<'a>(rows: impl IntoIterator<Item = Row<'a>>, byte_order_mark: bool) -> Result<Vec<u8>> {
    let rows = rows.into_iter().map(|row| {
        let fields =
            columns::all().iter().map(|column| column.value(&row).map(|value| value.field()).unwrap_or_default());
        fields.collect::<Vec<_>>()
    });
    write(columns::all().iter().map(|column| column.name.as_str()), rows, byte_order_mark)
}

/// A table of a run's folder, each row as many fields as the header.
///
/// # Errors
/// As [`render`].
pub fn write<'a>(
    header: impl IntoIterator<Item = &'a str>,
    rows: impl IntoIterator<Item = Vec<String>>,
    byte_order_mark: bool,
) -> Result<Vec<u8>> {
    let start = if byte_order_mark { BYTE_ORDER_MARK.to_vec() } else { Vec::new() };
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(start);
    writer.write_record(header).context("cannot express the header as CSV")?;
    for row in rows {
        writer.write_record(row).context("cannot express a row as CSV")?;
    }
    writer.into_inner().map_err(|error| Error::new("cannot express rows as CSV").because(error.into_error()))
}
