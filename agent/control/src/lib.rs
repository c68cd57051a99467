//! The manager: allocation, validation, sessions, certificate authority and join
