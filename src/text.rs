//! Errors as one line of text.
//!
//! In: errors of the system and of libraries. Out: their words and those of their causes, without
//! the number that the system gives an error (` (os error 111)`): it says the same and helps
//! nobody.

use std::error::Error;

/// An error and its causes, without a cause that its effect has already quoted.
pub fn chain(error: &dyn Error) -> String {
    let mut text = without_numbers(error.to_string());
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = without_numbers(cause.to_string());
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The text of an error of the system, or one that quotes it.
pub fn without_numbers(mut text: String) -> String {
    const START: &str = " (os error ";
    while let Some(at) = text.find(START) {
        let Some(length) = text[at..].find(')') else { break };
        text.replace_range(at..=at + length, "");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    #[error("can't listen on 127.0.0.1:993")]
    struct Outer(#[source] io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("quoted: {0}")]
    struct Quoting(#[source] io::Error);

    #[test]
    fn causes_are_said_once_and_without_their_numbers() {
        let refused = || io::Error::from_raw_os_error(111);
        let expected = "can't listen on 127.0.0.1:993: Connection refused";
        assert_eq!(chain(&Outer(refused())), expected);
        assert_eq!(chain(&Quoting(refused())), "quoted: Connection refused");
        assert_eq!(without_numbers("a (os error 1), b (os error 2".into()), "a, b (os error 2");
    }
}
