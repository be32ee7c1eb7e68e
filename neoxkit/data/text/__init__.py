"""Where text comes from: files and folders into documents."""
