//! The tc programs of the datapath
