//! The beginning of a published output: Parquet as a table, anything else as the text that it is.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use arrow::{
    array::{Array, Float64Array, RecordBatch},
    util::display::{ArrayFormatter, FormatOptions},
};
use comfy_table::{Cell, CellAlignment, Table, presets::UTF8_BORDERS_ONLY};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::error::{CliError, Exit};

/// Prints so many rows or lines of the files together.
pub fn preview(files: &[PathBuf], rows: usize) -> Result<(), CliError> {
    let (tables, texts): (Vec<_>, Vec<_>) =
        files.iter().partition(|file| file.extension().is_some_and(|extension| extension == "parquet"));
    let mut left = rows;
    for path in tables {
        left -= print_table(path, left).map_err(|error| unreadable(path, &error))?;
    }
    for path in texts {
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        for line in BufReader::new(file).lines().take(left) {
            println!("{}", line.map_err(|error| unreadable(path, &error))?);
            left -= 1;
        }
    }
    Ok(())
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> CliError {
    CliError::new(Exit::OutOfReach, format!("cannot read {}: {error}", path.display()))
}

/// Prints the first rows, and says how many there were.
fn print_table(path: &Path, rows: usize) -> Result<usize, Box<dyn std::error::Error>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?;
    let total = usize::try_from(reader.metadata().file_metadata().num_rows())?;
    let shown = total.min(rows);
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY);
    table.set_header(reader.schema().fields().iter().map(|field| field.name()));
    for batch in reader.with_limit(shown).build()? {
        add_rows(&mut table, &batch?)?;
    }
    println!("{table}");
    if total > shown {
        println!("… and {} more", super::count((total - shown) as u64, "row"));
    }
    Ok(shown)
}

fn add_rows(table: &mut Table, batch: &RecordBatch) -> Result<(), arrow::error::ArrowError> {
    let options = FormatOptions::default();
    let columns: Vec<_> = batch.columns().iter().map(|column| (column, column.data_type().is_numeric())).collect();
    let formatters: Result<Vec<_>, _> =
        columns.iter().map(|(column, _)| ArrayFormatter::try_new(column.as_ref(), &options)).collect();
    let formatters = formatters?;
    for row in 0..batch.num_rows() {
        table.add_row(columns.iter().zip(&formatters).map(|((column, numeric), formatter)| {
            let text = match column.as_any().downcast_ref::<Float64Array>() {
                Some(floats) if floats.is_valid(row) => format!("{:.2}", floats.value(row)),
                _ => formatter.value(row).to_string(),
            };
            Cell::new(text).set_alignment(if *numeric { CellAlignment::Right } else { CellAlignment::Left })
        }));
    }
    Ok(())
}
