"""What recipes cost, and what they bring.  Studies may import everything; programs alone import them."""
