# Prints `make help` from the comments of the Makefile: "##@ Title" begins a section, "target: ... ## text" is a line.
BEGIN { FS = ":.*## "; print "Espalier: train and prune GPT-2.  make menuconfig && make train" }
/^##@ / { printf "\n%s\n", substr($0, 5) }
/^[a-z%_-]+:.*## / { name = $1; sub("%", "<name>", name); printf "  %-18s %s\n", name, $2 }
END {
	print "\nAny option of the menu can be set on the command line: make train OPTIMIZER=sgd LEARNING_RATE=0.1"
	print "make train PYTHON=/path/to/python uses your own environment instead of .venv."
}
