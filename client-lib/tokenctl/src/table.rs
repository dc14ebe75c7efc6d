//! Aligned columns, with or without colours.

use tokend_client::State;

use crate::human::cut;

/// Two spaces tell columns apart whatever is in them.
const GAP: &str = "  ";

/// A table whose cells hold no control characters.
pub(crate) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// A cell with its colour.
pub(crate) struct Cell {
    text: String,
    paint: Option<Paint>,
}

#[derive(Clone, Copy)]
enum Paint {
    Green,
    Yellow,
    Red,
}

impl Paint {
    fn code(self) -> &'static str {
        match self {
            Self::Green => "\x1b[32m",
            Self::Yellow => "\x1b[33m",
            Self::Red => "\x1b[31m",
        }
    }
}

/// Whether a table is written with colours.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colours {
    With,
    Without,
}

impl Cell {
    pub(crate) fn state(state: State) -> Self {
        let paint = match state {
            State::Fresh => Paint::Green,
            State::Refreshing | State::Degraded | State::Pending => Paint::Yellow,
            State::Unavailable | State::NeedsOperator => Paint::Red,
        };
        Self { text: state.as_str().to_owned(), paint: Some(paint) }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }

    fn write(&self, line: &mut String, max: usize, colours: Colours) {
        let text = cut(&self.text, max);
        match self.paint.filter(|_| colours == Colours::With) {
            Some(paint) => line.extend([paint.code(), &text, "\x1b[0m"]),
            None => line.push_str(&text),
        }
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.to_string(), paint: None }
    }
}

impl Table {
    pub(crate) fn new(head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// The table as text, each line with its end.
    pub(crate) fn render(&self, colours: Colours) -> String {
        self.render_within(usize::MAX, colours)
    }

    /// The same, with lines of at most `max` characters.
    pub(crate) fn render_within(&self, max: usize, colours: Colours) -> String {
        let head: Vec<Cell> = self.head.iter().map(Cell::from).collect();
        let widths = self.widths();
        let mut text = String::new();
        for row in std::iter::once(&head).chain(&self.rows) {
            let mut line = String::new();
            let (mut owed, mut start) = (0, 0);
            for (cell, width) in row.iter().zip(&widths) {
                if start >= max {
                    break;
                }
                line.extend(std::iter::repeat_n(' ', owed));
                cell.write(&mut line, max - start, colours);
                owed = width.saturating_sub(cell.width()) + GAP.len();
                start += width + GAP.len();
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<_> = self.head.iter().map(|text| text.chars().count()).collect();
        for row in &self.rows {
            for (cell, width) in row.iter().zip(&mut widths) {
                *width = cell.width().max(*width);
            }
        }
        widths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["NAME", "STATE", "REQUESTS"]);
        table.row(vec!["a-long-name".into(), Cell::state(State::Fresh), 7.into()]);
        table.row(vec!["é".into(), Cell::state(State::Unavailable), 12.into()]);
        table
    }

    #[test]
    fn columns_are_aligned() {
        let plain = table().render(Colours::Without);
        assert_eq!(
            plain,
            "NAME         STATE        REQUESTS\n\
             a-long-name  fresh        7\n\
             é            unavailable  12\n"
        );
    }

    #[test]
    fn lines_are_cut_at_the_width_of_the_terminal() {
        let narrow = table().render_within(20, Colours::With);
        assert_eq!(
            narrow,
            "NAME         STATE\n\
             a-long-name  \x1b[32mfresh\x1b[0m\n\
             é            \x1b[31munavai…\x1b[0m\n"
        );
        assert_eq!(
            table().render_within(28, Colours::Without).lines().next(),
            Some("NAME         STATE        R…")
        );
    }

    #[test]
    fn colours_change_nothing_but_the_colours() {
        let painted = table().render(Colours::With);
        assert!(painted.contains("\x1b[32mfresh\x1b[0m        7"), "{painted}");
        assert!(painted.contains("\x1b[31munavailable\x1b[0m  12"), "{painted}");
    }
}
