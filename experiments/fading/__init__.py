"""Does noise that ends in time bring features back at the default length?"""
