"""The model: embed, blocks, norm, head. It knows no file format and no family."""
