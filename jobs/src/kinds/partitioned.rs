//! A table in hive-style directories: `column=value/…/part-00000.parquet`.
//!
//! Rows go to the file of their values in the order in which they come, so that a query's ORDER BY holds in each file.
//! A writer holds what it is writing: of many at once the one that was used least recently is finished, and a further
//! file is begun when its values come again.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, RecordBatch, UInt32Array},
    compute::take_record_batch,
    datatypes::{Schema, SchemaRef},
    row::{RowConverter, SortField},
    util::display::{ArrayFormatter, FormatOptions},
};

use super::{
    TaskError, Written,
    sql::partitions::directory,
    table::{Layout, TableWriter, extension},
};

/// Open files at once.
const MOST_OPEN: usize = 128;
/// More directories are no help to any reader.
const MOST_DIRECTORIES: usize = 10_000;

/// Writes rows to the files of their values.
pub struct PartitionedWriter {
    dir: PathBuf,
    index: u32,
    layout: Layout,
    /// What the files hold.
    schema: SchemaRef,
    by: Vec<usize>,
    rest: Vec<usize>,
    names: Vec<String>,
    rows: RowConverter,
    /// By the values as rows.
    partitions: HashMap<Box<[u8]>, usize>,
    directories: Vec<Directory>,
    open: BTreeMap<usize, Open>,
    /// Counts the batches.
    clock: u64,
    /// Bytes that the writers may hold together.
    most_held: u64,
    done: Vec<Written>,
}

struct Directory {
    name: String,
    files: u32,
}

struct Open {
    writer: TableWriter,
    used: u64,
}

impl PartitionedWriter {
    /// Begins a table whose rows are parted by these columns.
    pub fn create(
        dir: &Path,
        index: u32,
        schema: &SchemaRef,
        layout: Layout,
        columns: &[String],
        most_held: u64,
    ) -> Result<Self, TaskError> {
        let place = |name: &String| schema.index_of(name).map_err(|error| table(dir, error));
        let by = columns.iter().map(place).collect::<Result<Vec<_>, _>>()?;
        let rest: Vec<_> = (0..schema.fields().len()).filter(|at| !by.contains(at)).collect();
        let held = schema.project(&rest).map_err(|error| table(dir, error))?;
        let sort = |at: &usize| SortField::new(schema.field(*at).data_type().clone());
        let rows = RowConverter::new(by.iter().map(sort).collect()).map_err(|error| table(dir, error))?;
        Ok(Self {
            dir: dir.to_owned(),
            index,
            layout,
            schema: Arc::new(Schema::new(held.fields().clone())),
            by,
            rest,
            names: columns.to_vec(),
            rows,
            partitions: HashMap::new(),
            directories: Vec::new(),
            open: BTreeMap::new(),
            clock: 0,
            most_held,
            done: Vec::new(),
        })
    }

    /// Adds rows.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), TaskError> {
        self.clock += 1;
        let wrong = |error| table(&self.dir, error);
        let keys: Vec<ArrayRef> = self.by.iter().map(|at| Arc::clone(batch.column(*at))).collect();
        let rows = self.rows.convert_columns(&keys).map_err(wrong)?;
        let held = batch.project(&self.rest).map_err(wrong)?;
        let held = held.with_schema(Arc::clone(&self.schema)).map_err(wrong)?;
        let mut places: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for (at, row) in (0..).zip(rows.iter()) {
            let partition = match self.partitions.get(row.as_ref()) {
                Some(partition) => *partition,
                None => self.begin(row.as_ref(), &keys, at as usize)?,
            };
            places.entry(partition).or_default().push(at);
        }
        for (partition, rows) in places {
            match rows.len() == batch.num_rows() {
                true => self.append(partition, &held)?,
                false => {
                    let some = take_record_batch(&held, &UInt32Array::from(rows));
                    self.append(partition, &some.map_err(|error| table(&self.dir, error))?)?;
                }
            }
        }
        while self.open.len() > 1 && self.held() > self.most_held {
            let largest = self.open.iter().max_by_key(|(_, open)| open.writer.held()).map(|(at, _)| *at);
            self.finish_one(largest)?;
        }
        Ok(())
    }

    /// A directory for values that are new.
    fn begin(&mut self, row: &[u8], keys: &[ArrayRef], at: usize) -> Result<usize, TaskError> {
        let options = FormatOptions::default();
        let mut segments = Vec::new();
        for (name, values) in self.names.iter().zip(keys) {
            let shown = match values.is_null(at) {
                true => None,
                false => {
                    let formatter = ArrayFormatter::try_new(values, &options);
                    Some(formatter.map_err(|error| table(&self.dir, error))?.value(at).to_string())
                }
            };
            let segment = directory(name, shown.as_deref());
            segments.push(segment.map_err(|why| TaskError::BadInput(format!("[output] partition_by: {why}")))?);
        }
        if self.directories.len() == MOST_DIRECTORIES {
            return Err(TaskError::BadInput(format!(
                "[output] partition_by: the columns {} have more than {MOST_DIRECTORIES} values: part by something \
                 coarser",
                self.names.join(", ")
            )));
        }
        let partition = self.directories.len();
        self.directories.push(Directory { name: segments.join("/"), files: 0 });
        self.partitions.insert(row.into(), partition);
        Ok(partition)
    }

    fn append(&mut self, partition: usize, rows: &RecordBatch) -> Result<(), TaskError> {
        if !self.open.contains_key(&partition) {
            if self.open.len() == MOST_OPEN {
                let idle = self.open.iter().min_by_key(|(_, open)| open.used).map(|(at, _)| *at);
                self.finish_one(idle)?;
            }
            let directory = &mut self.directories[partition];
            let (index, extension) = (self.index, extension(self.layout.format));
            let publish_as = match directory.files {
                0 => format!("{}/part-{index:05}.{extension}", directory.name),
                further => format!("{}/part-{index:05}-{further}.{extension}", directory.name),
            };
            // Where it is until it is published, nobody sees.
            let path = self.dir.join(format!("part-{index:05}.{partition}.{}.{extension}", directory.files));
            directory.files += 1;
            let writer = TableWriter::begin(path, publish_as, &self.schema, self.layout)?;
            self.open.insert(partition, Open { writer, used: self.clock });
        }
        let open = self.open.get_mut(&partition).expect("it was opened above");
        open.used = self.clock;
        open.writer.write(rows)
    }

    fn held(&self) -> u64 {
        self.open.values().map(|open| open.writer.held()).sum()
    }

    fn finish_one(&mut self, partition: Option<usize>) -> Result<(), TaskError> {
        if let Some(open) = partition.and_then(|partition| self.open.remove(&partition)) {
            self.done.push(open.writer.finish()?);
        }
        Ok(())
    }

    /// Finishes all files.
    pub fn finish(mut self) -> Result<Vec<Written>, TaskError> {
        while let Some(first) = self.open.keys().next().copied() {
            self.finish_one(Some(first))?;
        }
        Ok(self.done)
    }
}

fn table(dir: &Path, source: arrow::error::ArrowError) -> TaskError {
    TaskError::Table { what: dir.display().to_string(), source }
}
