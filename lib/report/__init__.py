"""Reports: what came of several runs, from their journals: verdicts, tables and figures."""
