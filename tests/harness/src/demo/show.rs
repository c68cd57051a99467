//! How the demo talks.

use std::{io::IsTerminal, time::Instant};

use crate::{Host, Result};

pub(super) fn line(text: &str) {
    println!("  {text}");
}

pub(super) struct Show {
    colour: bool,
    begin: Instant,
}

impl Show {
    pub(super) fn new(begin: Instant) -> Self {
        Self { colour: std::io::stdout().is_terminal(), begin }
    }

    pub(super) fn step(&self, title: &str) {
        println!("\n{}", self.bold(&format!("[{:5.1} s] {title}", self.begin.elapsed().as_secs_f64())));
    }

    pub(super) fn command(&self, machine: &str, command: &str) {
        println!("  {}", self.paint("36", &format!("{machine}# {command}")));
    }

    pub(super) fn good(&self, text: &str) {
        println!("  {} {text}", self.paint("32", "ok"));
    }

    /// Shows a command and what it prints.
    pub(super) fn run(&self, host: &Host, command: &str) -> Result<()> {
        self.command(host.name(), command);
        let output = host.run(command.split(' '))?.ok()?;
        output.stdout.lines().for_each(line);
        Ok(())
    }

    pub(super) fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
