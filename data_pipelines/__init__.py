"""Any source -> canonical records -> weighted, resumable stream -> graph batches."""
