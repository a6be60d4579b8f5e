"""`python -m mqt_llava.conversion.convert_quecc_llava`, for those who have the repository; see there."""

from mqt_llava.conversion.convert_quecc_llava import main


if __name__ == "__main__":
    main()
