//! Which server wrote a line, where one log has lines of several.

/// The writer of the log, by the name that a log collector adds to each line.
#[derive(Debug, Default)]
pub struct Origin {
    /// The name on the lines that are counted: `Some(None)` if they have none, and `None` before
    /// the first line.
    current: Option<Option<String>>,
    /// The name of the server before it, which is over.
    previous: Option<String>,
    /// Whether several servers write at a time: no line is counted any more.
    pub is_several: bool,
}

impl Origin {
    /// Whether a line of that origin is the watched server's.
    pub fn accepts(&mut self, origin: Option<String>, is_loading: bool) -> bool {
        let current = self.current.get_or_insert_with(|| origin.clone());
        if *current == origin || self.is_several {
            return !self.is_several;
        }
        // Where the lines have no name, a line with one is forged; where they have one, a line
        // without.
        if current.is_none() || origin.is_none() {
            return false;
        }
        // One server after another: the second is starting.
        self.is_several = !is_loading || self.previous == origin;
        if !self.is_several {
            self.previous = self.current.replace(origin).flatten();
        }
        !self.is_several
    }
}
