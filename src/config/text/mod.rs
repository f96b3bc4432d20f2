//! From the text of a file to a tree, with a place for everything that is wrong in it.

pub mod mistake;

pub mod characters;

pub mod yaml;

pub mod env;
