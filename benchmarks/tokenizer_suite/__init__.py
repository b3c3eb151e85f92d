"""What benchmarks/tokenizer.py is made of: texts, peers, and the page's table and plot."""
