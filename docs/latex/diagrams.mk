# The documents in LaTeX: the diagrams of CONTROL_FLOW_DIAGRAM.tex, the formula sheet and the hand-out of the worked
# example. PDFs go to docs/_build/pdf, each diagram as SVG and PNG to figures/diagrams. The same TeX gives the same bytes.
# The numbers are committed, so that plain `latexmk -pdf` works too: at the root and in docs/latex, without Python.

LATEX_BUILD    ?= docs/_build
LATEX_FIGURES  ?= figures/diagrams
LATEX_SOURCES  := CONTROL_FLOW_DIAGRAM.tex docs/latex/cheatsheet.tex docs/latex/worked_example.tex \
                  docs/latex/worksheet.tex
LATEX_DIAGRAMS  = $(LATEX_BUILD)/pdf/CONTROL_FLOW_DIAGRAM.pdf
LATEX_PAGES    := 1_model 2_block 3_attention 4_training 5_generation 6_gradients
LATEX_PACKAGES := texlive-latex-base texlive-latex-extra texlive-pictures latexmk poppler-utils chktex
LATEX_TROUBLE  := Overfull|Underfull|LaTeX.*Warning|Package.*Warning|Class.*Warning|pdfTeX warning|undefined

PY ?= python3

.PHONY: diagrams latex-tools latex-numbers latex-documents latex-figures

diagrams: latex-tools $(READY)  ## build the LaTeX diagrams, the formula sheet and the hand-out
	@$(MAKE) --no-print-directory -f docs/latex/diagrams.mk PY="$(PY)" latex-numbers
	@$(MAKE) --no-print-directory -f docs/latex/diagrams.mk latex-documents
	@$(MAKE) --no-print-directory -f docs/latex/diagrams.mk latex-figures
	@echo "$(LATEX_BUILD)/pdf holds the PDFs, $(LATEX_FIGURES) the diagrams"

latex-tools:
	@for tool in latexmk pdflatex pdftocairo; do command -v $$tool >/dev/null || { \
	    echo "make diagrams needs LaTeX, and $$tool is not here. On Debian and Ubuntu:"; \
	    echo "    apt-get install --no-install-recommends $(LATEX_PACKAGES)"; exit 1; }; done

latex-numbers:
	@$(PY) -m docs.latex.numbers docs/latex

# A warning stops the build: a box that is too full is seen in print, and a missing reference as well.
latex-documents:
	@mkdir -p $(LATEX_BUILD)/pdf
	@for source in $(LATEX_SOURCES); do \
	    job=$(LATEX_BUILD)/pdf/$$(basename $$source .tex); echo "latexmk $$source -> $$job.pdf"; \
	    latexmk -pdf -silent -halt-on-error -interaction=nonstopmode \
	        -outdir=$(LATEX_BUILD)/pdf $$source >$$job.console 2>&1 \
	        || { grep -A 4 '^!' $$job.log; echo "$$source does not compile: see $$job.log"; exit 1; }; \
	    ! grep -nE '$(LATEX_TROUBLE)' $$job.log || { echo "$$source compiles, but not without a warning"; exit 1; }; \
	done

latex-figures:
	@mkdir -p $(LATEX_FIGURES)
	@page=0; for name in $(LATEX_PAGES); do page=$$((page + 1)); \
	    pdftocairo -svg -f $$page -l $$page $(LATEX_DIAGRAMS) $(LATEX_FIGURES)/$$name.svg || exit 1; \
	    pdftocairo -png -r 150 -f $$page -l $$page -singlefile $(LATEX_DIAGRAMS) $(LATEX_FIGURES)/$$name || exit 1; \
	done
	@{ pdflatex --version | head -n 1; pdftocairo -v 2>&1 | head -n 1; \
	    echo "sources $$(cat CONTROL_FLOW_DIAGRAM.tex docs/latex/notation.tex docs/latex/numbers.tex | sha256sum | cut -c 1-64)"; \
	} > $(LATEX_FIGURES)/made_by.txt
