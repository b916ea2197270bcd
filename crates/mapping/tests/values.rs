//! Values on their way from PostgreSQL's two forms into columns.

mod support;

use millrace_mapping::{Cell, ChType, ColumnPlan, Fault, MappingOptions, RowError, plan_columns};
use millrace_model::{PgType, Timestamp};
use proptest::prelude::*;
use support::{OPTIONS, Value, array, block, builder, copy_tuple, plan, table, typed_values, values};

fn column(pg_type: PgType, nullable: bool) -> ColumnPlan {
    plan(&[("c", pg_type, nullable)]).remove(0)
}

fn array_type(element: PgType) -> PgType {
    PgType::Array(Box::new(element))
}

proptest! {
    #[test]
    fn both_forms_of_a_value_give_the_same_bytes((pg_type, rows) in typed_values()) {
        let column = column(pg_type, true);
        let cells = |form: fn(&Value) -> Cell<'_>| -> Vec<_> {
            rows.iter().map(|row| row.as_ref().map_or(Cell::Null, form)).collect()
        };
        let binary = block(&column, &cells(|value| Cell::Binary(&value.binary)));
        let text = block(&column, &cells(|value| Cell::Text(&value.text)));
        prop_assert_eq!(&binary.altered, &text.altered);
        prop_assert_eq!(binary.pieces.concat(), text.pieces.concat());
    }

    #[test]
    fn a_numeric_in_a_string_column_is_postgresqls_text(value in support::value_of(&PgType::Numeric(None))) {
        let column = column(PgType::Numeric(None), false);
        let mut expected = vec![value.text.len() as u8];
        expected.extend(&value.text);
        prop_assert_eq!(values(&column, &[Cell::Binary(&value.binary)]), expected);
    }

    #[test]
    fn a_copied_row_is_the_row_of_its_cells((pg_type, rows) in typed_values()) {
        let plan = plan(&[("a", pg_type.clone(), true), ("b", pg_type, true)]);
        let (mut copied, mut streamed) = (builder(&plan), builder(&plan));
        for row in &rows {
            let field = row.as_ref().map(|value| value.binary.as_slice());
            copied.append_copy_tuple(&copy_tuple(&[field, field])).unwrap();
            for at in [1, 0] {
                streamed.append_cell(at, field.map_or(Cell::Null, Cell::Binary)).unwrap();
            }
            streamed.end_row(0, false).unwrap();
        }
        prop_assert_eq!(copied.finish(Timestamp(7)), streamed.finish(Timestamp(7)));
    }

    #[test]
    fn any_bytes_are_read_or_refused_and_a_refused_row_leaves_no_trace(
        (pg_type, rows) in typed_values(),
        noise in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 1..8),
        cut in any::<prop::sample::Index>(),
        flip in any::<(prop::sample::Index, u8)>(),
    ) {
        let plan = plan(&[("a", PgType::Enum, true), ("b", pg_type, true), ("c", PgType::Int4, true)]);
        let (mut tried, mut clean) = (builder(&plan), builder(&plan));
        let mut attempts: Vec<Cell<'_>> = Vec::new();
        let mut damaged = Vec::new();
        for value in rows.iter().flatten() {
            for bytes in [&value.binary, &value.text] {
                damaged.push(bytes[..cut.index(bytes.len() + 1)].to_vec());
                let mut flipped = bytes.clone();
                if !flipped.is_empty() {
                    let at = flip.0.index(flipped.len());
                    flipped[at] ^= flip.1;
                }
                damaged.push(flipped);
            }
            attempts.extend([Cell::Binary(&value.binary), Cell::Text(&value.text)]);
        }
        for bytes in noise.iter().chain(&damaged) {
            attempts.extend([Cell::Binary(bytes), Cell::Text(bytes)]);
        }
        for (number, cell) in attempts.into_iter().enumerate() {
            let label = format!("label {number}");
            tried.append_cell(0, Cell::Text(label.as_bytes())).unwrap();
            let bytes = tried.bytes();
            let appended = tried.append_cell(1, cell);
            if appended.is_err() {
                prop_assert_eq!(tried.bytes(), bytes);
                tried.abandon_row();
                continue;
            }
            // A row may also be given up for the caller's own reasons.
            if number % 5 == 4 {
                tried.abandon_row();
                continue;
            }
            tried.append_cell(2, Cell::Null).unwrap();
            tried.end_row(9, true).unwrap();
            clean.append_cell(0, Cell::Text(label.as_bytes())).unwrap();
            clean.append_cell(1, cell).unwrap();
            clean.append_default(2);
            clean.end_row(9, true).unwrap();
        }
        prop_assert_eq!(tried.rows(), clean.rows());
        prop_assert_eq!(tried.bytes(), clean.bytes());
        prop_assert_eq!(tried.finish(Timestamp(1)), clean.finish(Timestamp(1)));
    }

    #[test]
    fn any_tuple_is_read_or_refused_and_a_refused_one_leaves_no_trace(
        noise in proptest::collection::vec(any::<u8>(), 0..80),
        cut in 0..40usize,
    ) {
        let plan = plan(&[("a", PgType::Enum, true), ("b", array_type(PgType::Text), true)]);
        let (mut tried, mut clean) = (builder(&plan), builder(&plan));
        let elements = array(&[Some(Value::new("x", "x")), None], 1);
        let good = copy_tuple(&[Some(b"new"), Some(&elements.binary)]);
        let longer = [&good[..], &[0]].concat();
        for tuple in [&good[..cut.min(good.len() - 1)], &noise, &longer] {
            if tried.append_copy_tuple(tuple).is_ok() {
                clean.append_copy_tuple(tuple).unwrap();
            }
        }
        prop_assert_eq!(tried.bytes(), clean.bytes());
        prop_assert_eq!(tried.finish(Timestamp(1)), clean.finish(Timestamp(1)));
    }
}

#[test]
fn a_block_is_what_the_native_format_says() {
    let plan = plan(&[
        ("id", PgType::Int4, false),
        ("note", PgType::Text, true),
        ("tags", array_type(PgType::Int2), false),
        ("mood", PgType::Enum, false),
    ]);
    let mut block = builder(&plan);
    let elements = array(&[Some(Value::new(5i16.to_be_bytes(), "5")), None], 1);
    block
        .append_copy_tuple(&copy_tuple(&[
            Some(&258i32.to_be_bytes()),
            Some(b"hi"),
            Some(&elements.binary),
            Some(b"ok"),
        ]))
        .unwrap();
    for (at, cell) in
        [Cell::Text(b"-1"), Cell::Null, Cell::Text(b"{}"), Cell::Text(b"ok")].into_iter().enumerate()
    {
        block.append_cell(at, cell).unwrap();
    }
    block.end_row(0x0102, true).unwrap();
    let expected_len = block.bytes();
    let encoded = block.finish(Timestamp(3));

    let mut expected = vec![7, 2];
    expected.extend(b"\x02id\x05Int32\x02\x01\0\0\xff\xff\xff\xff");
    expected.extend(b"\x04note\x10Nullable(String)\0\x01\x02hi\0");
    expected.extend(b"\x04tags\x16Array(Nullable(Int16))");
    expected.extend(b"\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0");
    expected.extend(b"\0\x01\x05\0\0\0");
    expected.extend(b"\x04mood\x16LowCardinality(String)\x01\0\0\0\0\0\0\0");
    expected.extend(b"\0\x06\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\x02ok\x02\0\0\0\0\0\0\0\x01\x01");
    expected.extend(b"\x11_millrace_version\x06UInt64\0\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0");
    expected.extend(b"\x14_millrace_is_deleted\x05UInt8\0\x01");
    expected.extend(b"\x13_millrace_synced_at\x0dDateTime64(9)");
    expected.extend(b"\xb8\x0b\0\0\0\0\0\0\xb8\x0b\0\0\0\0\0\0");
    assert_eq!(encoded.pieces.concat(), expected);
    assert_eq!((encoded.rows, expected_len), (2, expected.len()));
    assert_eq!(encoded.pieces.len(), 1);

    assert_eq!((block.rows(), block.finish(Timestamp(0)).rows), (0, 0));
}

#[test]
fn values_have_clickhouses_byte_order() {
    let of = |pg_type: PgType, text: &str| values(&column(pg_type, false), &[Cell::Text(text.as_bytes())]);
    assert_eq!(
        of(PgType::Uuid, "00112233-4455-6677-8899-aabbccddeeff"),
        [0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0xff, 0xee, 0xdd, 0xcc, 0xbb, 0xaa, 0x99, 0x88]
    );
    assert_eq!(of(PgType::Date, "1970-01-02"), [1, 0, 0, 0]);
    assert_eq!(of(PgType::TimestampTz, "1970-01-01 00:00:00.000258+00"), [2, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(of(PgType::Time, "24:00:00"), 86_400_000_000i64.to_le_bytes());
    assert_eq!(of(PgType::Bytea, "\\x00ff"), [2, 0, 0xff]);
    assert_eq!(of(PgType::Float8, "-0"), (-0f64).to_le_bytes());
    assert_eq!(of(PgType::Numeric(Some((12, 2))), "-1234567890.12"), (-123_456_789_012i64).to_le_bytes());
    // An array of enumeration labels: the dictionary's version stands before the arrays' ends.
    assert_eq!(
        of(array_type(PgType::Enum), "{a,NULL}"),
        [
            &1u64.to_le_bytes()[..],
            &2u64.to_le_bytes(),
            &0x600u64.to_le_bytes(),
            &2u64.to_le_bytes(),
            b"\0\x01a",
            &2u64.to_le_bytes(),
            &[1, 0],
        ]
        .concat()
    );
    // Without any element it has neither dictionary nor numbers.
    assert_eq!(of(array_type(PgType::Enum), "{}"), [1u64.to_le_bytes(), 0u64.to_le_bytes()].concat());
}

#[test]
fn what_clickhouse_cannot_hold_is_counted_by_column() {
    let plan = plan(&[
        ("price", PgType::Numeric(Some((4, 2))), true),
        ("day", PgType::Date, false),
        ("days", array_type(PgType::Date), true),
        ("rest", PgType::Int4, true),
    ]);
    let mut block = builder(&plan);
    let mut append = |cells: [Cell<'_>; 4]| {
        for (at, cell) in cells.into_iter().enumerate() {
            block.append_cell(at, cell).unwrap();
        }
        block.altered().collect::<Vec<_>>()
    };
    let counts = append([
        Cell::Text(b"NaN"),
        Cell::Text(b"infinity"),
        Cell::Text(b"{-infinity,2024-01-01,infinity}"),
        Cell::Null,
    ]);
    assert_eq!(counts, [(0, 1), (1, 1), (2, 2)]);
    block.abandon_row();
    assert_eq!(block.altered().count(), 0);

    for (at, cell) in
        [Cell::Text(b"NaN"), Cell::Text(b"2024-01-01"), Cell::Null, Cell::Null].into_iter().enumerate()
    {
        block.append_cell(at, cell).unwrap();
    }
    block.end_row(1, false).unwrap();
    assert_eq!(block.finish(Timestamp(0)).altered, [(0, 1), (2, 1)]);
    assert_eq!(block.altered().count(), 0);
}

#[test]
fn null_in_place_of_a_map_or_an_array_is_an_empty_one_and_counted() {
    let plan = plan(&[
        ("pairs", PgType::Hstore, true),
        ("vector", PgType::Vector, true),
        ("maps", array_type(PgType::Hstore), true),
        ("sure", PgType::Hstore, false),
    ]);
    let mut block = builder(&plan);
    let empty = Cell::Text(b"");
    for (at, cell) in
        [Cell::Null, Cell::Null, Cell::Text(br#"{"\"a\"=>NULL",NULL}"#), empty].into_iter().enumerate()
    {
        block.append_cell(at, cell).unwrap();
    }
    block.end_row(1, false).unwrap();
    assert_eq!(block.append_cell(3, Cell::Null).unwrap_err().fault, Fault::Null);
    // What a value had before it turned out to be none is taken back, also inside of maps and arrays.
    let bytes = block.bytes();
    for (at, value) in
        [(0, &br#""a"=>"1", "b"=>x"#[..]), (1, b"[1,2,x]"), (2, br#"{"\"a\"=>\"1\"",NULL,"b"}"#)]
    {
        assert_eq!(block.append_cell(at, Cell::Text(value)).unwrap_err().fault, Fault::Malformed);
        assert_eq!(block.bytes(), bytes, "{at}");
    }
    assert_eq!(block.finish(Timestamp(0)).altered, [(0, 1), (1, 1), (2, 1)]);
}

#[test]
fn maps_and_vectors_have_clickhouses_form() {
    let of = |pg_type: PgType, text: &str| values(&column(pg_type, true), &[Cell::Text(text.as_bytes())]);
    let expected = [&2u64.to_le_bytes()[..], b"\x01a\x02bc", &[0, 1], b"\x011\0"].concat();
    assert_eq!(of(PgType::Hstore, r#""a"=>"1", "bc"=>NULL"#), expected);
    let expected = [&2u64.to_le_bytes()[..], &1.5f32.to_le_bytes(), &(-2f32).to_le_bytes()].concat();
    assert_eq!(of(PgType::Vector, "[1.5,-2]"), expected);
    assert_eq!(of(PgType::HalfVec, "[1.5,-2]"), expected);
}

#[test]
fn nan_in_a_decimal_is_null_where_that_is_possible_and_else_zero() {
    let numeric = PgType::Numeric(Some((4, 2)));
    assert_eq!(values(&column(numeric.clone(), true), &[Cell::Text(b"NaN")]), [1, 0, 0, 0, 0]);
    assert_eq!(values(&column(numeric, false), &[Cell::Text(b"NaN")]), [0, 0, 0, 0]);
}

#[test]
fn null_is_a_default_only_where_the_user_chose_so() {
    let definition = table(&[("c", PgType::Text, true), ("d", PgType::Text, false)]);
    let plan = plan_columns(&definition, &MappingOptions { allow_nullable_columns: false, ..OPTIONS });
    assert_eq!(plan[0].target, ChType::String);
    assert_eq!(values(&plan[0], &[Cell::Null]), [0]);
    assert_eq!(block(&plan[0], &[Cell::Null]).altered, []);

    let mut block = builder(&plan);
    let error = block.append_cell(1, Cell::Null).unwrap_err();
    assert_eq!((error.fault, error.column.as_str()), (Fault::Null, "d"));
}

#[test]
fn a_tombstone_has_null_or_the_default_where_values_are_not_known() {
    let plan = plan(&[
        ("id", PgType::Int8, false),
        ("a", PgType::Uuid, false),
        ("b", PgType::Text, true),
        ("c", array_type(PgType::Int4), true),
        ("d", PgType::Enum, true),
    ]);
    let mut block = builder(&plan);
    block.append_cell(0, Cell::Text(b"7")).unwrap();
    for at in 0..plan.len() {
        block.append_default(at);
    }
    block.end_row(5, true).unwrap();
    assert_eq!(block.altered().count(), 0);
    let bytes = block.finish(Timestamp(0)).pieces.concat();
    let has = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    assert!(has(b"Int64\x07\0\0\0\0\0\0\0\x01a\x04UUID\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01b"));
    assert!(has(b"Nullable(String)\x01\0\x01c"));
    assert!(has(b"UInt8\x01"));
}

#[test]
fn values_that_would_be_altered_by_our_own_fault_are_refused() {
    let fault = |pg_type: PgType, cell: Cell<'_>| {
        builder(&[column(pg_type, true)]).append_cell(0, cell).unwrap_err().fault
    };
    assert_eq!(fault(PgType::Int4, Cell::Unchanged), Fault::Unchanged);
    assert_eq!(fault(PgType::Int4, Cell::Binary(&[0; 8])), Fault::Malformed);
    assert_eq!(fault(PgType::Int2, Cell::Text(b"40000")), Fault::Malformed);
    assert_eq!(fault(PgType::Numeric(Some((4, 2))), Cell::Text(b"100.00")), Fault::Digits);
    assert_eq!(fault(PgType::Numeric(Some((4, 2))), Cell::Text(b"1.005")), Fault::Digits);
    // 0.00001: its only group stands second after the point.
    let small = Cell::Binary(&[0, 1, 0xff, 0xfe, 0, 0, 0, 5, 3, 0xe8]);
    assert_eq!(fault(PgType::Numeric(Some((9, 2))), small), Fault::Digits);
    assert_eq!(fault(PgType::Numeric(Some((9, 4))), small), Fault::Digits);
    assert_eq!(fault(PgType::Numeric(Some((9, 0))), small), Fault::Digits);
    assert_eq!(fault(PgType::Jsonb, Cell::Binary(b"\x02{}")), Fault::Malformed);
    assert_eq!(fault(array_type(PgType::Int4), Cell::Text(b"{{1},{2}}")), Fault::Dimensions);
    assert_eq!(fault(PgType::Other("inet".into()), Cell::Binary(&[2, 32, 0, 4])), Fault::NoBinaryForm);

    let foreign = ColumnPlan::new("c", PgType::Int4, true, ChType::nullable(ChType::array(ChType::Int32)));
    let error = builder(&[foreign]).append_cell(0, Cell::Text(b"1")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "column 'c', on its way to Nullable(Array(Int32)): there is no conversion between these types"
    );
}

#[test]
fn a_row_takes_each_column_once_and_needs_them_all() {
    let mut block = builder(&plan(&[("a", PgType::Int4, true), ("b", PgType::Int4, true)]));
    let empty = block.bytes();
    block.append_cell(1, Cell::Text(b"1")).unwrap();
    assert_eq!(block.append_cell(1, Cell::Text(b"2")).unwrap_err().fault, Fault::Repeated);
    assert_eq!(block.append_cell(2, Cell::Null).unwrap_err().fault, Fault::NoColumn);
    assert_eq!(block.end_row(1, false), Err(RowError::FieldCount { expected: 2, found: 1 }));
    assert_eq!((block.rows(), block.bytes()), (0, empty));
    let tuple = copy_tuple(&[None]);
    assert_eq!(block.append_copy_tuple(&tuple), Err(RowError::FieldCount { expected: 2, found: 1 }));
}

#[test]
fn a_tuple_ends_with_its_last_field() {
    let mut block = builder(&plan(&[("a", PgType::Enum, true), ("b", PgType::Int4, true)]));
    let good = copy_tuple(&[Some(b"up"), Some(&[0, 0, 0, 1])]);
    for tuple in [&[][..], &good[..good.len() - 1], &good[..9], &[&good[..], &[0]].concat()] {
        assert_eq!(block.append_copy_tuple(tuple), Err(RowError::TupleLength));
    }
    assert_eq!(block.append_copy_tuple(&good), Ok(()));
}

#[test]
fn an_empty_block_has_names_and_types_only() {
    let mut block = builder(&plan(&[("a", PgType::Enum, true), ("b", array_type(PgType::Enum), true)]));
    let bytes = block.bytes();
    let encoded = block.finish(Timestamp(0));
    assert_eq!((encoded.rows, encoded.bytes()), (0, bytes));
    assert!(encoded.pieces.concat().starts_with(b"\x05\0\x01a\x20LowCardinality(Nullable(String))\x01b"));
}

#[test]
fn text_of_a_type_without_decoder_goes_through_unchanged() {
    let plan = plan(&[
        ("a", PgType::Other("inet".into()), true),
        ("b", array_type(PgType::Other("inet".into())), true),
    ]);
    let mut block = builder(&plan);
    block.append_copy_tuple(&copy_tuple(&[Some(b"::1/64"), Some(b"{10.0.0.1,NULL}")])).unwrap();
    let bytes = block.finish(Timestamp(0)).pieces.concat();
    let has = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    assert!(has(b"\0\x06::1/64"));
    assert!(has(b"\x02\0\0\0\0\0\0\0\0\x01\x0810.0.0.1\0"));
}

#[test]
fn the_odd_values_of_the_char_type_read_alike_in_both_forms() {
    let column = column(PgType::Text, false);
    assert_eq!(values(&column, &[Cell::Binary(&[0])]), values(&column, &[Cell::Text(b"")]));
    assert_eq!(values(&column, &[Cell::Binary(&[0xe9])]), values(&column, &[Cell::Text(b"\\351")]));
}

#[test]
fn large_blocks_come_in_pieces_and_the_builder_goes_on() {
    let plan = plan(&[("a", PgType::Int8, false), ("b", PgType::Text, true), ("c", PgType::Enum, true)]);
    let mut block = builder(&plan);
    let mut fill = || {
        for row in 0..20_000i64 {
            let text = format!("row {row}");
            let label = format!("label {}", row % 300);
            let fields = [Some(&row.to_be_bytes()[..]), Some(text.as_bytes()), Some(label.as_bytes())];
            block.append_copy_tuple(&copy_tuple(&fields)).unwrap();
        }
        let bytes = block.bytes();
        let encoded = block.finish(Timestamp(1));
        assert_eq!(encoded.bytes(), bytes);
        encoded
    };
    let first = fill();
    assert!(first.pieces.len() > 1);
    assert_eq!(fill(), first);
}

#[test]
fn a_widened_column_takes_the_binary_form_of_its_narrower_types() {
    let column = |source, target| ColumnPlan::new("c", source, false, target);
    let long = column(PgType::Int4, ChType::Int64);
    assert_eq!(values(&long, &[Cell::Binary(&(-7i32).to_be_bytes())]), (-7i64).to_le_bytes());
    assert_eq!(values(&long, &[Cell::Binary(&(-7i16).to_be_bytes())]), (-7i64).to_le_bytes());
    let middle = column(PgType::Int2, ChType::Int32);
    assert_eq!(values(&middle, &[Cell::Binary(&(-7i16).to_be_bytes())]), (-7i32).to_le_bytes());
    let double = column(PgType::Float4, ChType::Float64);
    assert_eq!(values(&double, &[Cell::Binary(&1.5f32.to_be_bytes())]), 1.5f64.to_le_bytes());
}
