"""Everything a person sees: cleaned text, colour, tables, bars, progress, live frames."""
