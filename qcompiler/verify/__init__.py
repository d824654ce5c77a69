"""After emission: does the artifact run, is it right, and do the planned kernels really run?"""
