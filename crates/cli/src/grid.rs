//! Columns of text under a heading.

use unicode_width::UnicodeWidthStr as _;

/// Rows whose columns are as wide as their widest cell.
pub(crate) struct Grid {
    rows: Vec<Vec<String>>,
}

impl Grid {
    pub(crate) fn new(heading: &[&str]) -> Self {
        Self { rows: vec![heading.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        // A name may hold anything; a line break in it must not break the table.
        let plain = |cell: String| cell.replace(char::is_control, "\u{fffd}");
        self.rows.push(cells.into_iter().map(plain).collect());
    }

    /// The text, one line a row, without white space at the ends of lines.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width - cell.width() + 2));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::Grid;

    #[test]
    fn columns_stand_under_their_heading_whatever_the_names_hold() {
        let mut grid = Grid::new(&["NAME", "ROWS"]);
        grid.row(["表\n".to_owned(), "1".to_owned()]);
        grid.row(["orders".to_owned(), "22".to_owned()]);
        assert_eq!(grid.render(), "NAME    ROWS\n表\u{fffd}     1\norders  22\n");
    }
}
