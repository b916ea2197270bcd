//! One column of a block: where values are appended, and how a half-appended row is taken back.

use millrace_model::PgType;
use millrace_model::spec::OutOfRange;

use crate::array::{elements_of_binary, elements_of_text};
use crate::decoder::{Decoder, Fit, Form};
use crate::dictionary::{Dictionary, DictionaryMark};
use crate::error::Fault;
use crate::hstore::{pairs_of_binary, pairs_of_text};
use crate::native::{Pieces, put_string, put_varuint};
use crate::row_binary::{take, take_varint};
use crate::vector::{self, Precision};
use crate::{ChType, ColumnPlan};

/// What NULL becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnNull {
    /// NULL.
    Keep,
    /// The type's default, as the user chose.
    Default,
    /// An empty array or map, which is counted, as ClickHouse has none that are nullable.
    Empty,
    /// An error: the source said that there is none.
    Refuse,
}

#[derive(Debug)]
enum Body {
    /// Values one after another.
    Plain { decoder: Decoder, bytes: Vec<u8> },
    /// `LowCardinality`.
    Dictionary(Dictionary),
    /// `Array`: the ends of all arrays, and their elements as a column of their own.
    Array { ends: Vec<u8>, elements: Box<Column>, form: Elements, unescaped: Vec<u8> },
    /// `Map`: the ends of all maps, and their keys and values as columns of their own.
    Map { ends: Vec<u8>, keys: Box<Column>, values: Box<Column>, scratch: Box<[Vec<u8>; 2]> },
}

/// How the source writes the elements of an array.
#[derive(Debug, Clone, Copy)]
enum Elements {
    /// As an array whose text form has this byte between them.
    Array(u8),
    /// As a vector.
    Vector(Precision),
}

/// How long a column was before the newest value.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    rows: usize,
    altered: u64,
    bytes: usize,
    dictionary: DictionaryMark,
}

#[derive(Debug)]
pub(crate) struct Column {
    rows: usize,
    on_null: OnNull,
    out_of_range: OutOfRange,
    /// One byte a row, 1 for NULL; only where the type is `Nullable`.
    nulls: Option<Vec<u8>>,
    body: Body,
    altered: u64,
    mark: Mark,
}

impl Column {
    pub(crate) fn new(plan: &ColumnPlan) -> Self {
        let on_null = match &plan.target {
            target if target.holds_null() => OnNull::Keep,
            _ if !plan.nullable => OnNull::Refuse,
            ChType::Array(_) | ChType::Map(..) => OnNull::Empty,
            _ => OnNull::Default,
        };
        Self::of_type(&plan.source, &plan.target, on_null, plan.out_of_range)
    }

    fn of_type(source: &PgType, target: &ChType, on_null: OnNull, out_of_range: OutOfRange) -> Self {
        let plain = |target| Body::Plain { decoder: Decoder::choose(source, target), bytes: Vec::new() };
        let (body, nulls) = match (source, target) {
            (PgType::Array(source), ChType::Array(target)) => {
                (array_body(source, target, out_of_range), None)
            }
            (PgType::Vector, ChType::Array(target)) => (vector_body(Precision::Single, target), None),
            (PgType::HalfVec, ChType::Array(target)) => (vector_body(Precision::Half, target), None),
            (PgType::Hstore, ChType::Map(key, value)) => (map_body(key, value), None),
            (PgType::Enum | PgType::Text, ChType::LowCardinality(inner)) => match inner.as_ref() {
                ChType::String => (Body::Dictionary(Dictionary::new(false)), None),
                ChType::Nullable(inner) if **inner == ChType::String => {
                    (Body::Dictionary(Dictionary::new(true)), None)
                }
                _ => (plain(target), None),
            },
            (_, ChType::Nullable(inner)) => (plain(inner), Some(Vec::new())),
            _ => (plain(target), None),
        };
        Self { rows: 0, on_null, out_of_range, nulls, body, altered: 0, mark: Mark::default() }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Values that were altered by policy, elements of arrays included.
    pub(crate) fn altered(&self) -> u64 {
        match &self.body {
            Body::Array { elements, .. } => self.altered + elements.altered(),
            Body::Plain { .. } | Body::Dictionary(_) | Body::Map { .. } => self.altered,
        }
    }

    /// Appends a value or NULL as the next row. After a fault the column is as before.
    #[inline]
    pub(crate) fn append(&mut self, value: Option<&[u8]>, form: Form) -> Result<(), Fault> {
        self.set_mark();
        let appended = self.push(value, form);
        if appended.is_err() {
            self.take_back();
        }
        appended
    }

    /// Appends NULL where the column can hold it, else the type's default.
    pub(crate) fn append_default(&mut self) {
        self.set_mark();
        self.push_default();
    }

    /// Appends a value that was read back from a column of the same type in `RowBinary`.
    pub(crate) fn append_row_binary(&mut self, value: &[u8]) -> Result<(), Fault> {
        self.set_mark();
        let mut rest = value;
        let appended = self.push_row_binary(&mut rest);
        if appended.is_none() || !rest.is_empty() {
            self.take_back();
            return Err(Fault::Malformed);
        }
        Ok(())
    }

    fn push_row_binary(&mut self, rest: &mut &[u8]) -> Option<()> {
        let nullable = match &self.body {
            Body::Dictionary(dictionary) => dictionary.is_nullable(),
            Body::Plain { .. } | Body::Array { .. } | Body::Map { .. } => self.nulls.is_some(),
        };
        if nullable && take(rest, 1)? != [0] {
            self.push_default();
            return Some(());
        }
        match &mut self.body {
            Body::Plain { decoder, bytes } if decoder.writes_string() => {
                let length = take_varint(rest)?;
                put_string(bytes, take(rest, length)?);
            }
            Body::Plain { decoder, bytes } => bytes.extend_from_slice(take(rest, decoder.default_len())?),
            Body::Dictionary(dictionary) => {
                let length = take_varint(rest)?;
                dictionary.push(take(rest, length)?);
            }
            Body::Array { ends, elements, .. } => {
                for _ in 0..take_varint(rest)? {
                    elements.push_row_binary(rest)?;
                }
                ends.extend_from_slice(&(elements.rows as u64).to_le_bytes());
            }
            Body::Map { ends, keys, values, .. } => {
                for _ in 0..take_varint(rest)? {
                    keys.push_row_binary(rest)?;
                    values.push_row_binary(rest)?;
                }
                ends.extend_from_slice(&(keys.rows as u64).to_le_bytes());
            }
        }
        if let Some(nulls) = &mut self.nulls {
            nulls.push(0);
        }
        self.rows += 1;
        Some(())
    }

    /// Takes the newest row back.
    #[cold]
    pub(crate) fn take_back(&mut self) {
        let mark = self.mark;
        self.rows = mark.rows;
        self.altered = mark.altered;
        if let Some(nulls) = &mut self.nulls {
            nulls.truncate(mark.rows);
        }
        match &mut self.body {
            Body::Plain { bytes, .. } => bytes.truncate(mark.bytes),
            Body::Dictionary(dictionary) => dictionary.restore(mark.dictionary),
            Body::Array { ends, elements, .. } => {
                ends.truncate(mark.bytes);
                elements.take_back();
            }
            Body::Map { ends, keys, values, .. } => {
                ends.truncate(mark.bytes);
                keys.take_back();
                values.take_back();
            }
        }
    }

    #[inline]
    fn set_mark(&mut self) {
        self.mark.rows = self.rows;
        self.mark.altered = self.altered;
        match &mut self.body {
            Body::Plain { bytes, .. } => self.mark.bytes = bytes.len(),
            Body::Dictionary(dictionary) => self.mark.dictionary = dictionary.mark(),
            Body::Array { ends, elements, .. } => {
                self.mark.bytes = ends.len();
                elements.set_mark();
            }
            Body::Map { ends, keys, values, .. } => {
                self.mark.bytes = ends.len();
                keys.set_mark();
                values.set_mark();
            }
        }
    }

    #[inline]
    fn push(&mut self, value: Option<&[u8]>, form: Form) -> Result<(), Fault> {
        let Some(value) = value else {
            return self.push_null();
        };
        match &mut self.body {
            Body::Plain { decoder, bytes } => {
                let before = bytes.len();
                match (decoder.put(value, form, bytes)?, self.out_of_range) {
                    (Fit::Exact, _) => {}
                    (_, OutOfRange::Stop) => return Err(Fault::OutOfRange),
                    (Fit::Altered, OutOfRange::Clamp) => self.altered += 1,
                    (Fit::Altered | Fit::Impossible, _) => {
                        bytes.truncate(before);
                        self.altered += 1;
                        self.push_default();
                        return Ok(());
                    }
                }
            }
            Body::Dictionary(dictionary) => dictionary.push(value),
            Body::Array { ends, elements, form: written, unescaped } => {
                match (form, *written) {
                    (Form::Binary, Elements::Array(_)) => {
                        elements_of_binary(value, |element| elements.push(element, form))?;
                    }
                    (Form::Text, Elements::Array(delimiter)) => {
                        elements_of_text(value, delimiter, unescaped, |element| {
                            elements.push(element, form)
                        })?;
                    }
                    (Form::Binary, Elements::Vector(precision)) => {
                        vector::elements_of_binary(value, precision, |element| {
                            elements.push(Some(element), form)
                        })?;
                    }
                    (Form::Text, Elements::Vector(_)) => {
                        vector::elements_of_text(value, |element| elements.push(Some(element), form))?;
                    }
                }
                ends.extend_from_slice(&(elements.rows as u64).to_le_bytes());
            }
            Body::Map { ends, keys, values, scratch } => {
                let pair = |key: &[u8], value: Option<&[u8]>| {
                    keys.push(Some(key), form)?;
                    values.push(value, form)
                };
                match form {
                    Form::Binary => pairs_of_binary(value, pair)?,
                    Form::Text => {
                        let [key_scratch, value_scratch] = &mut **scratch;
                        pairs_of_text(value, key_scratch, value_scratch, pair)?;
                    }
                }
                ends.extend_from_slice(&(keys.rows as u64).to_le_bytes());
            }
        }
        if let Some(nulls) = &mut self.nulls {
            nulls.push(0);
        }
        self.rows += 1;
        Ok(())
    }

    fn push_null(&mut self) -> Result<(), Fault> {
        match self.on_null {
            OnNull::Keep | OnNull::Default => {}
            OnNull::Empty => self.altered += 1,
            OnNull::Refuse => return Err(Fault::Null),
        }
        self.push_default();
        Ok(())
    }

    fn push_default(&mut self) {
        match &mut self.body {
            Body::Plain { decoder, bytes } => bytes.resize(bytes.len() + decoder.default_len(), 0),
            Body::Dictionary(dictionary) => dictionary.push_default(),
            Body::Array { ends, elements, .. } => {
                ends.extend_from_slice(&(elements.rows as u64).to_le_bytes());
            }
            Body::Map { ends, keys, .. } => ends.extend_from_slice(&(keys.rows as u64).to_le_bytes()),
        }
        if let Some(nulls) = &mut self.nulls {
            nulls.push(1);
        }
        self.rows += 1;
    }

    /// Bytes of the column in a block, without name and type. A block without rows has nothing else.
    pub(crate) fn encoded_len(&self) -> usize {
        if self.rows == 0 { 0 } else { self.prefix_len() + self.data_len() }
    }

    /// Writes the column and forgets its rows.
    pub(crate) fn write(&mut self, out: &mut Pieces) {
        if self.rows > 0 {
            self.write_prefix(out);
            self.write_data(out);
        }
    }

    /// Some types begin with a prefix that stands before everything else, also before an outer array's ends.
    fn prefix_len(&self) -> usize {
        match &self.body {
            Body::Plain { .. } => 0,
            Body::Dictionary(_) => Dictionary::PREFIX_LEN,
            Body::Array { elements, .. } => elements.prefix_len(),
            Body::Map { keys, values, .. } => keys.prefix_len() + values.prefix_len(),
        }
    }

    fn write_prefix(&self, out: &mut Pieces) {
        match &self.body {
            Body::Plain { .. } => {}
            Body::Dictionary(_) => Dictionary::write_prefix(out),
            Body::Array { elements, .. } => elements.write_prefix(out),
            Body::Map { keys, values, .. } => {
                keys.write_prefix(out);
                values.write_prefix(out);
            }
        }
    }

    fn data_len(&self) -> usize {
        let nulls = self.nulls.as_ref().map_or(0, Vec::len);
        nulls
            + match &self.body {
                Body::Plain { bytes, .. } => bytes.len(),
                Body::Dictionary(dictionary) => dictionary.encoded_len(),
                Body::Array { ends, elements, .. } => ends.len() + elements.data_len(),
                Body::Map { ends, keys, values, .. } => ends.len() + keys.data_len() + values.data_len(),
            }
    }

    fn write_data(&mut self, out: &mut Pieces) {
        if let Some(nulls) = &mut self.nulls {
            out.take(nulls);
        }
        match &mut self.body {
            Body::Plain { bytes, .. } => out.take(bytes),
            Body::Dictionary(dictionary) => dictionary.write(out),
            Body::Array { ends, elements, .. } => {
                out.take(ends);
                elements.write_data(out);
            }
            Body::Map { ends, keys, values, .. } => {
                out.take(ends);
                keys.write_data(out);
                values.write_data(out);
            }
        }
        self.rows = 0;
        self.altered = 0;
        self.mark = Mark::default();
    }
}

/// Goes through the rows of a column and writes each as ClickHouse does in `RowBinary`.
pub(crate) struct Walk<'a> {
    column: &'a Column,
    row: usize,
    /// Where the row's value begins among plain bytes.
    at: usize,
    /// Through the elements of arrays, or the keys and values of maps.
    parts: Vec<Walk<'a>>,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(column: &'a Column) -> Self {
        let parts = match &column.body {
            Body::Plain { .. } | Body::Dictionary(_) => Vec::new(),
            Body::Array { elements, .. } => vec![Walk::new(elements)],
            Body::Map { keys, values, .. } => vec![Walk::new(keys), Walk::new(values)],
        };
        Self { column, row: 0, at: 0, parts }
    }

    /// Writes the next row; there must be one.
    pub(crate) fn next(&mut self, out: &mut Vec<u8>) {
        let row = self.row;
        self.row += 1;
        let is_null = self.column.nulls.as_ref().map(|nulls| nulls[row] == 1);
        if let Some(is_null) = is_null {
            out.push(u8::from(is_null));
        }
        match &self.column.body {
            Body::Plain { decoder, bytes } => {
                let mut rest = &bytes[self.at..];
                let length = if decoder.writes_string() {
                    let text = take_varint(&mut rest).unwrap_or(0);
                    bytes.len() - self.at - rest.len() + text
                } else {
                    decoder.default_len()
                };
                if is_null != Some(true) {
                    out.extend_from_slice(&bytes[self.at..self.at + length]);
                }
                self.at += length;
            }
            Body::Dictionary(dictionary) => dictionary.write_row_binary(row, out),
            Body::Array { ends, .. } | Body::Map { ends, .. } => {
                let end = |row: usize| {
                    let bytes = ends.get(row * 8..).and_then(|rest| rest.first_chunk::<8>());
                    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes) as usize)
                };
                let count = end(row) - row.checked_sub(1).map_or(0, end);
                put_varuint(out, count);
                for _ in 0..count {
                    self.parts.iter_mut().for_each(|part| part.next(out));
                }
            }
        }
    }
}

fn array_body(source: &PgType, target: &ChType, out_of_range: OutOfRange) -> Body {
    // `box` is the one type whose arrays are not written with commas (manual: "Array Input and Output Syntax").
    let delimiter = if matches!(source, PgType::Other(name) if name == "box") { b';' } else { b',' };
    let on_null = match target {
        target if target.holds_null() => OnNull::Keep,
        ChType::Array(_) | ChType::Map(..) => OnNull::Empty,
        _ => OnNull::Refuse,
    };
    let elements = Box::new(Column::of_type(source, target, on_null, out_of_range));
    Body::Array { ends: Vec::new(), elements, form: Elements::Array(delimiter), unescaped: Vec::new() }
}

fn vector_body(precision: Precision, target: &ChType) -> Body {
    let elements = Column::of_type(&PgType::Float4, target, OnNull::Refuse, OutOfRange::default());
    let (elements, form) = (Box::new(elements), Elements::Vector(precision));
    Body::Array { ends: Vec::new(), elements, form, unescaped: Vec::new() }
}

fn map_body(key: &ChType, value: &ChType) -> Body {
    let text = |target: &ChType, on_null| {
        Box::new(Column::of_type(&PgType::Text, target, on_null, OutOfRange::default()))
    };
    let on_null = if value.holds_null() { OnNull::Keep } else { OnNull::Refuse };
    let (keys, values) = (text(key, OnNull::Refuse), text(value, on_null));
    Body::Map { ends: Vec::new(), keys, values, scratch: Box::default() }
}
