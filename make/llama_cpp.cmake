# CMake reads this where llama.cpp's own project begins. Half of the build is helpers of llama.cpp's programs.
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "llama: build common utils library" FORCE)
